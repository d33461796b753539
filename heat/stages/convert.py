"""`heat data convert`: a labelling tool's export becomes a set, or a set an import of a tool."""

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.text import Text

from deploy.whole_folder import replacing_folder
from supernet.data.detection_set import DetectionSet, Problem, Record
from supernet.data.exported import Item, Written, split_name
from supernet.data.format_names import Format
from supernet.data.formats import HOLD_CROWDS, WRITERS, format_of, read_export
from supernet.data.upright import upright
from supernet.data.voc import voc_items
from supernet.errors import DataError, UserError
from supernet.progress import Progress

from ..records import Result
from ..views.terminal import terminal

UNFIT = re.compile("[\x00-\x1f\ud800-\udfff]")
"""Characters that XML or UTF-8 cannot hold."""
SHOWN = 10
"""Problems of a kind that are printed; all are in the result."""


def convert(
    source: Path,
    folder: Path,
    *,
    given: Format | None,
    to: Format,
    images: Path | None = None,
    val: float = 0.2,
    seed: int = 0,
) -> Result:
    """Write an export as a set of another format; raise `DataError` where it cannot be used.

    `val` is the share of images that are drawn for validation where the export has one split or
    none. The folder appears whole; one that holds anything is refused.
    """
    if not 0 <= val < 1:
        raise UserError(f"--val {val:g}: a share from 0 to below 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: 0 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: give another folder")
    kind = given or format_of(source)
    sets, stored = upright(one_numbering(read_export(source, kind, images)))
    if stored:
        print(
            f"{stored} images are annotated on their stored pixels, which EXIF turns: their boxes "
            "are turned too",
            file=sys.stderr,
        )
    splits = divided(sets, val, seed)
    files = [item.name for items in splits.values() for item in items]
    unfit = [name for name in (*sets[0].names, *files) if UNFIT.search(name)]
    if unfit:
        raise DataError(f"{source}: {unfit[0]!r} has characters that files cannot hold: rename it")
    written = Written(sets[0].names, sets[0].category_ids, splits)
    if to == "voc":
        written = voc_items(written)
    write, place = WRITERS[to]
    with replacing_folder(folder, fresh=True) as scratch:
        write(scratch, written)
        with Progress("images", sum(map(len, splits.values()))) as bar:
            for split, items in written.splits.items():
                for item in items:
                    _place(item.record.path, scratch / place.format(split=split) / item.name)
                    bar.advance()
    crowds = 0 if to in HOLD_CROWDS else sum(data.num_crowd for data in sets)
    problems = [problem for data in sets for problem in data.problems]
    counts = {
        split: {
            "images": len(items),
            "boxes": sum(len(item.record.labels) for item in items),
        }
        for split, items in splits.items()
    }
    _show(
        problems, crowds, counts, f"{kind} to {to} in {folder}; classes: {', '.join(sets[0].names)}"
    )
    return {
        "data": str(folder),
        "from": kind,
        "to": to,
        "names": list(written.names),
        "splits": counts,
        "crowds_left_out": crowds,
        "problems": [{"kind": p.kind, "where": p.where, "detail": p.detail} for p in problems],
    }


def one_numbering(sets: Sequence[DetectionSet]) -> list[DetectionSet]:
    """Return the splits of an export with all its classes, with the same numbers."""
    names = list(dict.fromkeys(name for data in sets for name in data.names))
    if all(data.names == sets[0].names for data in sets):
        return list(sets)
    return [data.numbered_as(names) for data in sets]


def divided(sets: Sequence[DetectionSet], val: float, seed: int) -> dict[str, list[Item]]:
    """Return the images of each split; one split, or none, is divided into train and val.

    One that is called val or test stays what it is.
    """
    splits: dict[str, list[Item]] = {}
    for data in sets:
        name = split_name(data.split)
        splits.setdefault(name, []).extend(_named(data.records))
    unnamed = splits.pop("", [])
    if unnamed:  # images without a split are trained on, as the others of it
        splits = {"train": [*splits.pop("train", []), *unnamed], **splits}
    if len(splits) == 1 and not splits.keys() & {"val", "test"}:
        splits = {"train": next(iter(splits.values()))}
    if list(splits) == ["train"] and val and len(splits["train"]) > 1:
        items = splits["train"]
        count = min(len(items) - 1, max(1, round(val * len(items))))
        drawn = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
        splits = {
            "train": [item for index, item in enumerate(items) if index not in drawn],
            "val": [item for index, item in enumerate(items) if index in drawn],
        }
    return {split: _distinct(split, items) for split, items in splits.items()}


def _named(records: Sequence[Record]) -> list[Item]:
    """Name images by their path below the folder that they share."""
    # Without "..": a name with it would lead out of the folder that is written.
    paths = [Path(os.path.normpath(record.path.absolute())) for record in records]
    shared = os.path.commonpath([path.parent for path in paths])
    return [
        Item(path.relative_to(shared).as_posix(), record)
        for path, record in zip(paths, records, strict=True)
    ]


def _distinct(split: str, items: list[Item]) -> list[Item]:
    """Number images anew, and refuse two of one name."""
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{split}: two images are called {twice[0]}: rename one")
    return [
        Item(item.name, replace(item.record, image_id=index)) for index, item in enumerate(items, 1)
    ]


def _place(image: Path, target: Path) -> None:
    """Link an image, or copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    image = image.resolve()
    try:
        os.link(image, target)
    except OSError:
        shutil.copyfile(image, target)


def _show(
    problems: Sequence[Problem],
    crowds: int,
    counts: Mapping[str, Mapping[str, int]],
    summary: str,
) -> None:
    """Print what could not be taken over, the first few of each kind, and what was written."""
    console = terminal()
    shown: Counter[str] = Counter()
    for problem in problems:
        shown[problem.kind] += 1
        if shown[problem.kind] <= SHOWN:
            text = Text(problem.kind, "bold") + f" at {problem.where}: {problem.detail}"
            console.print(text, soft_wrap=True)
    for kind, count in shown.items():
        if count > SHOWN:
            console.print(f"{kind}: {count - SHOWN} more", soft_wrap=True)
    if crowds:
        console.print(f"{crowds} crowd regions left out: only COCO has them", soft_wrap=True)
    for split, facts in counts.items():
        console.print(f"{split}: {facts['images']} images, {facts['boxes']} boxes")
    console.print(summary, soft_wrap=True, markup=False)
