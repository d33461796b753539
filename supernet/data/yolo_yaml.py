"""Reads `data.yaml`: class names as written, and the image files of each split."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..errors import DataError
from .annotations import whole
from .image_files import list_images

NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML writes that there is no value."""
SPLITS = ("train", "val", "valid", "test")


@dataclass(frozen=True, slots=True)
class Head:
    """The content of a `data.yaml`."""

    path: Path
    """The file itself, absolute."""
    names: tuple[str, ...]
    """Class names, by number."""
    keypoint_values: int
    """Numbers of keypoints that follow a box in each line; 0 for sets without keypoints."""
    base: str
    """The `path:` entry: where the splits are."""
    splits: dict[str, tuple[str, ...]]
    """Folders or lists of each split."""

    def images(self, split: str) -> list[Path]:
        """Return the image files of a split: of a folder, of several, or of a list in a file."""
        found: list[Path] = []
        for item in self.splits[split]:
            place = self._place(item)
            if place.is_dir():
                found += list_images(place)
            elif place.suffix.lower() == ".txt" and place.is_file():
                found += self._listed(place)
            else:
                raise DataError(f"{self.path}: {split} is {item}, and there is no {place}")
        return found

    def is_there(self, split: str) -> bool:
        """Return whether all folders and lists of a split exist."""
        return all(self._place(item).exists() for item in self.splits[split])

    def _bases(self) -> Iterator[Path]:
        if self.base:
            yield self.path.parent / _slashes(self.base)
        yield self.path.parent

    def _place(self, item: str) -> Path:
        """Return where a split lies: below `path:`, if that exists here, or below the file itself.

        Exported sets have `../train/images` although the folder is beside `data.yaml`.
        """
        texts = (item, _slashes(item), _slashes(item).removeprefix("../"))
        places = [base / text for base in self._bases() for text in texts]
        return next((place for place in places if place.exists()), places[0])

    def _listed(self, file: Path) -> list[Path]:
        """Return the images of a list file, whose paths are relative to it or to the set.

        A folder in a list means all its images.

        Lists often hold absolute paths of the machine that wrote them: the longest end of such a
        path that exists here is taken. A file that does not exist keeps the path as written.
        """
        bases = list(dict.fromkeys((file.parent, *self._bases())))
        # Bytes that are no UTF-8 are bytes of a file name.
        text = _decoded(file, errors="surrogateescape")
        lines = text.split("\n" if "\n" in text else "\r")
        found, before = [], (bases[0], 0)
        for line in filter(None, map(_unquoted, lines)):
            parts = PurePosixPath(_slashes(line)).parts
            usual = before[0].joinpath(*parts[before[1] :])
            if usual.is_file():
                found.append(usual)
                continue
            as_written = file.parent / line
            if as_written.is_file():
                found.append(as_written)
                continue
            absolute = bool(parts) and (parts[0] == "/" or parts[0].endswith(":"))
            skips = range(len(parts) if absolute else 1)
            ends = ((base, skip) for skip in skips for base in bases)
            which = next((e for e in ends if e[0].joinpath(*parts[e[1] :]).is_file()), None)
            if which is None:
                folder = next(
                    (place for b in bases if (place := b.joinpath(*parts)).is_dir()), None
                )
                found += [as_written] if folder is None else list_images(folder)
                continue
            before = which
            found.append(which[0].joinpath(*parts[which[1] :]))
        return found


def read_head(path: Path) -> Head:
    """Read a `data.yaml`; every value is taken as text, so `no` and `010` stay what they are."""
    try:
        raw = yaml.load(_decoded(path), Loader=_Texts)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or "names" not in raw:
        raise DataError(f"{path}: names needed (a list of classes), and train, val")
    splits: dict[str, tuple[str, ...]] = {}
    for key in SPLITS:
        items = raw.get(key)
        chosen = tuple(items) if isinstance(items, list) else (items,)
        if not all(item is None or isinstance(item, str) for item in chosen):
            raise DataError(f"{path}: {key} must be a folder, a list file, or several of them")
        given = tuple(item for item in chosen if item is not None and item not in NOTHING)
        if given:
            splits.setdefault("val" if key == "valid" else key, given)
    base = raw.get("path")
    return Head(
        path.absolute(),
        _names(raw, path),
        _keypoint_values(raw, path),
        base if isinstance(base, str) and base not in NOTHING else "",
        splits,
    )


def head_text(names: Iterable[str], splits: Iterable[str]) -> str:
    """Return the `data.yaml` of a set whose images are in `images/SPLIT`."""
    quoted = (
        yaml.safe_dump(name, default_style='"', allow_unicode=True, width=math.inf)
        for name in names
    )
    listed = "".join(f"  {index}: {text}" for index, text in enumerate(quoted))
    folders = "".join(f"{split}: images/{split}\n" for split in splits)
    return f"path: .\n{folders}names:\n{listed}"


class _Texts(yaml.BaseLoader):  # type: ignore[misc]
    """Loads every value as text; refuses a key that a mapping has twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raises `YAMLError` for a repeated key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"the key {key.value} is repeated in line {line}")
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def decode(data: bytes, name: Path, errors: str = "strict") -> str:
    """Return the text of a file: UTF-8 or UTF-16; raise `DataError` for others."""
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    # UTF-16 without its mark: every other byte of digits and of plain letters is zero.
    for start, other in ((1, "utf-16-le"), (0, "utf-16-be")):
        if coding == "utf-8-sig" and data[start::2].count(0) > len(data) // 4:
            coding = other
    try:
        return data.decode(coding, errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 (byte {data[error.start]:#04x} at {error.start}): "
            "save it as UTF-8"
        ) from None


def _decoded(path: Path, errors: str = "strict") -> str:
    try:
        return decode(path.read_bytes(), path, errors)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _unquoted(line: str) -> str:
    """Return a line of a list without surrounding blanks and quotes."""
    text = line.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1].strip() if quoted else text


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def _names(raw: Mapping[str, object], path: Path) -> tuple[str, ...]:
    names = raw["names"]
    if isinstance(names, dict):
        try:
            numbered = {whole(key): name for key, name in names.items()}
        except (ValueError, TypeError):
            numbered = {}
        if len(numbered) != len(names) or sorted(numbered) != list(range(len(names))):
            shown = ", ".join(map(str, names))
            raise DataError(
                f"{path}: names must be numbered 0 to {len(names) - 1}, found the keys {shown}"
            )
        names = [numbered[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names must be a list of classes, found {names!r}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: every class needs a name as text, found {name!r}")
    if raw.get("nc", "") not in NOTHING:
        try:
            count = whole(raw["nc"])
        except ValueError:
            count = -1
        if count != len(names):
            raise DataError(f"{path}: nc is {raw['nc']}, but there are {len(names)} names")
    return tuple(names)


def _keypoint_values(raw: Mapping[str, object], path: Path) -> int:
    """Return how many numbers of keypoints follow a box; 0 where `kpt_shape` is not stated."""
    shape: Any = raw.get("kpt_shape")
    if shape is None or shape in NOTHING:
        return 0
    try:
        points, values = (whole(side) for side in shape)
    except (ValueError, TypeError):
        points, values = 0, 0
    if points < 1 or values not in (2, 3):
        raise DataError(f"{path}: kpt_shape must be [points, 2 or 3], found {shape}")
    return points * values
