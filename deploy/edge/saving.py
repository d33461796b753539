"""Writes results atomically, and replaces only files that HEAT wrote.

Images and videos end with a mark by which they are recognised. Needs numpy and OpenCV only; every
bundle's `detect.py` carries this file's text.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np

from supernet.errors import DataError
from supernet.letterbox import Image

from .sources import is_live, recording_name

MADE_BY_HEAT = b"heat detect\n"
"""Ends every image and video that was written; decoders stop before it."""
RECORD_KEY = b'"boxes_xyxy_px"'
"""Occurs in every file with detections."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
RECORDING_ROOM = 12
"""Most bytes of a name that a recording's number and suffix take."""
WRITTEN_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Formats that images with boxes keep; others become JPEG."""
LONGEST_SIDE_PX = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Largest images that formats hold."""


def partial_path(path: Path) -> Path:
    """Return a short hidden name beside a file, under which it is written."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}.part{path.suffix}")


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, then rename; bundles have no `supernet.atomic`."""
    temporary = partial_path(path)
    _check_regular(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def write_image(path: Path, image: Image) -> Path:
    """Write an RGB image and return its path: a PNG where its own format cannot hold its size."""
    pixels = np.ascontiguousarray(image[:, :, ::-1])
    own = path.suffix.lower()
    for suffix in dict.fromkeys((own, ".png")):
        if max(image.shape[:2]) > LONGEST_SIDE_PX.get(suffix, 2**31):
            continue
        try:
            ok, data = cv2.imencode(suffix, pixels)
        except cv2.error:
            continue
        if ok:
            target = path
            if suffix != own:
                target = renamed(path, suffix)
                check_free(target)
            write_whole(target, data.tobytes() + MADE_BY_HEAT)
            return target
    height, width = image.shape[:2]
    raise DataError(f"cannot write {path}: neither {path.suffix} nor PNG holds {width}x{height}")


def renamed(path: Path, suffix: str) -> Path:
    """Return a path with another suffix after its own; too long a name is cut and hashed."""
    name = path.name + suffix
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
        stem = os.fsencode(path.stem)[: LONGEST_NAME - 14 - len(os.fsencode(path.suffix + suffix))]
        name = f"{stem.decode(errors='ignore')}-{digest}{path.suffix}{suffix}"
    return path.with_name(name)


def fitting(name: str) -> str:
    """Return the name of a recording, cut where a number and .jsonl would make it too long."""
    coded = os.fsencode(name)
    if len(coded) + RECORDING_ROOM <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(coded).hexdigest()[:12]
    start = coded[: LONGEST_NAME - RECORDING_ROOM - len(digest) - 1]
    return f"{start.decode(errors='ignore')}-{digest}"


def outputs_of(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return where each image is written: its own name and its path below what all share.

    Raises `DataError` where that is a source, or a file that HEAT did not write.
    """
    check_folder(folder, paths)
    taken = {os.path.realpath(path) for path in paths}
    found: dict[Path, Path] = {}
    for path, below in zip(paths, below_shared(paths), strict=True):
        target = folder / below / path.name
        if path.suffix.lower() not in WRITTEN_SUFFIXES:
            target = renamed(target, ".jpg")
        check_free(target, taken)
        found[path] = target
    check_free(folder / "detections.json")
    return found


def recordings_of(sources: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return a path for each video's recording, without suffix, all different."""
    files = [Path(source) for source in sources if not is_live(source)]
    check_folder(folder, files)
    taken = {os.path.realpath(path) for path in files}
    below = dict(zip(files, below_shared(files), strict=True))
    found: dict[str, Path] = {}
    for source in sources:
        name = fitting(recording_name(source))
        target = folder / below.get(Path(source), Path()) / name
        number = 1
        live = is_live(source)
        # A camera's earlier recordings are never replaced.
        while target in found.values() or (live and _recorded_before(target)):
            number += 1
            target = target.with_name(f"{name}-{number}")
        check_free(recorded(target, live), taken)
        found[source] = target
    return found


def recorded(target: Path, live: bool) -> Path:
    """Return the video file of a recording, of a camera or stream if `live`."""
    return target.with_name(f"{target.name}{'.mkv' if live else '.mp4'}")


def _recorded_before(target: Path) -> bool:
    lines = target.with_name(f"{target.name}.jsonl")
    return any(path.exists() for path in (recorded(target, True), recorded(target, False), lines))


def below_shared(paths: Sequence[Path]) -> list[Path]:
    """Return each file's folder relative to the deepest folder that contains all of them."""
    parents = [os.path.normpath(path.parent.absolute()) for path in paths]
    shared = os.path.commonpath(parents) if parents else ""
    return [Path(os.path.relpath(parent, shared)) for parent in parents]


def check_folder(folder: Path, sources: Sequence[Path]) -> None:
    """Refuse to write into a folder of sources."""
    check_above(folder / "any")
    real = os.path.realpath(folder)
    for source in sources:
        if os.path.realpath(source.parent) == real or os.path.realpath(source) == real:
            raise DataError(
                f"--save {folder} is the folder of {source}, which would be replaced: choose "
                "another"
            )


def check_free(path: Path, taken: Collection[str] = ()) -> None:
    """Refuse to replace a source, or a file that was not written by `heat detect`."""
    if os.path.realpath(path) in taken:
        raise DataError(f"{path} is a source, which would be replaced: choose another --save")
    _check_regular(path)
    check_above(path)
    if path.exists() and not _written_by_heat(path):
        raise DataError(f"{path} is there already, and not from heat detect: choose another --save")


def _check_regular(path: Path) -> None:
    """Refuse a target that exists and is not a regular file."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise DataError(f"{path} is {what}: choose another --save")


def check_above(path: Path) -> None:
    """Refuse a path below a file."""
    above = next((parent for parent in path.parents if parent.exists()), Path())
    if not above.is_dir():
        raise DataError(f"cannot write to {above}, which is a file: give a folder to --save")


def _written_by_heat(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            if path.suffix in (".json", ".jsonl"):
                start = stream.read(2**16)
                return RECORD_KEY in start or start.strip() in (b"", b"[]")
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - len(MADE_BY_HEAT)))
            return stream.read() == MADE_BY_HEAT
    except OSError:
        return False
