"""Commands about data sets: label, check, convert, cells, shapes."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from supernet.data.format_names import Format

from ..records import Result
from .find import asked_of, find_data
from .options import NO_TEACHER, OutputStride, Size, Teaching


def label(
    images: Path,
    /,
    *,
    teacher: Teaching = NO_TEACHER,
    score: str = "auto",
    data: Path | None = None,
    out: Path,
) -> Result:
    """Label images with a teacher: a COCO set to train on, or to correct in a labelling tool.

    Scores are kept with the annotations, and the uncertain ones are listed in uncertain.csv. Run it
    again after an interruption, or with another --score, and images are not looked at twice.

    Args:
        images: Folder of images, nested or not.
        score: Lowest score of a label: a number, or auto for the best F1 of each class, as the
            teacher's card states it, or found on labelled images.
        data: Detection set whose classes are kept, and on whose val split --score auto finds
            thresholds; by default all classes are kept, and the split of the teacher's training
            is used.
        out: Folder to write; files that were changed there are kept.
    """
    from deploy.edge.score_limits import check_score
    from supernet.data.coco import find_split
    from supernet.errors import UserError

    from ..stages.label import label as run
    from ..workspace import Workspace

    asked = asked_of(teacher)
    if asked is None or asked.teacher is None:
        raise UserError("which detector? give --teacher")
    lowest = None
    if score != "auto":
        try:
            lowest = check_score(float(score))
        except ValueError:
            raise UserError(f"--score {score}: a number from 0 to 1, or auto") from None
    trained = Workspace(asked.teacher).stages().get("train") if asked.teacher.is_dir() else None
    val, names = None, None
    if data is not None:
        no_val = find_split(data, "val") is None
        labelled = find_data(Workspace(out), data, "train" if no_val else "val")
        val, names = None if no_val else labelled, labelled.names
    if data is None and lowest is None and trained is not None:
        own = Path(trained["data"])
        if own.is_dir() and find_split(own, "val") is not None:
            val = find_data(Workspace(out), own, "val")
    return run(images, asked, out, score=lowest, val=val, names=names)


def check(
    folder: Path, /, *, input_size: Size = None, output_stride: OutputStride = None
) -> Result:
    """Print images, boxes, crowds and classes of each split, and what is wrong and where.

    Images without boxes are counted apart: they are trained on as background, and scored. Boxes
    that no anchor fits are counted at an input size (448x448) and at all output strides, or the
    one given: many of them ask for a larger input, or for a smaller stride.

    Args:
        folder: Folder in COCO format (annotations/instances_SPLIT.json) or YOLO format (data.yaml).
    """
    from supernet.heatdetr.input_size import parse_size

    from ..views.tables import check_data

    asked: dict[str, Any] = {}
    if input_size is not None:
        asked["input_size"] = parse_size(input_size)
    if output_stride is not None:
        asked["strides"] = (int(output_stride),)
    return check_data(folder, **asked)


def convert(
    source: Path,
    folder: Path,
    /,
    *,
    from_: Annotated[Format | None, Parameter(name="--from")] = None,
    to: Format = "coco",
    images: Path | None = None,
    val: float = 0.2,
    seed: int = 0,
) -> Result:
    """Turn a labelling tool's export into a set, or a set into another format.

    Pascal VOC, YOLO, COCO, CVAT for images, Label Studio. Splits are kept; where there is one, or
    none, images are drawn for validation. Images are linked where that is possible, else copied.

    Args:
        source: Folder or file of the export.
        folder: Where to write the set; it must not exist, or be empty.
        from_: Format of the export; recognised by default.
        to: Format to write: coco and yolo are trained on, the others are for their tools.
        images: Folder of the images, where they are not with the export.
        val: Share of the images that is drawn for validation; 0 for none.
        seed: The same seed draws the same images.
    """
    from ..stages.convert import convert as converted

    return converted(source, folder, given=from_, to=to, images=images, val=val, seed=seed)


def cells(
    folder: Path = Path("cells"),
    /,
    *,
    train: int = 160,
    val: int = 40,
    seed: int = 0,
    labels: Literal["coco", "yolo"] = "coco",
) -> Result:
    """Generate a small detection set that looks like a real task: cells under a microscope.

    Args:
        folder: Where to write it.
        train: Training images.
        val: Validation images.
        seed: The same seed gives the same set.
        labels: Format of the labels.
    """
    from supernet.data.cells import NAMES, make_cells

    return _draw(make_cells, NAMES, folder, train, val, seed, labels)


def shapes(
    folder: Path = Path("shapes"),
    /,
    *,
    train: int = 160,
    val: int = 40,
    seed: int = 0,
    labels: Literal["coco", "yolo"] = "coco",
) -> Result:
    """Generate a small detection set of synthetic shapes.

    Args:
        folder: Where to write it.
        train: Training images.
        val: Validation images.
        seed: The same seed gives the same set.
        labels: Format of the labels.
    """
    from supernet.data.shapes import NAMES, make_shapes

    return _draw(make_shapes, NAMES, folder, train, val, seed, labels)


def _draw(
    make: Callable[..., None],
    names: Sequence[str],
    folder: Path,
    train: int,
    val: int,
    seed: int,
    labels: str,
) -> Result:
    """Draw a set; refuse what cannot be drawn, and a folder that holds a set already."""
    from supernet.atomic import write_text
    from supernet.errors import UserError

    if train < 1 or val < 1:
        raise UserError(f"--train {train} --val {val}: at least 1 image each")
    if seed < 0:
        raise UserError(f"--seed {seed}: 0 or more")
    parts = [
        folder / name for name in ("annotations", "train", "val", "images", "labels", "data.yaml")
    ]
    unfinished = folder / ".unfinished"
    if unfinished.exists():  # an earlier command was ended: what it drew is drawn anew
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
    for part in parts:
        if part.exists():
            raise UserError(f"{folder} already holds {part.name}: give another folder")
    write_text(unfinished, "heat data has not finished this set\n")
    make(folder, train=train, val=val, seed=seed, labels=labels)
    unfinished.unlink()
    return {"data": str(folder), "train": train, "val": val, "names": list(names)}
