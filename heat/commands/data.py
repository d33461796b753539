"""Commands about data sets: check, shapes."""

from pathlib import Path

from ..records import Result


def check(folder: Path, /) -> Result:
    """Print images, boxes, crowds and classes of each split, and what is wrong and where.

    Images without boxes are counted apart: they are trained on as background, and scored.

    Args:
        folder: Folder in COCO format (annotations/instances_SPLIT.json) or YOLO format (data.yaml).
    """
    from ..views.tables import check_data

    return check_data(folder)


def shapes(
    folder: Path = Path("shapes"), /, *, train: int = 160, val: int = 40, seed: int = 0
) -> Result:
    """Make a small detection set of synthetic shapes.

    Args:
        folder: Where to write it.
        train: Training images.
        val: Validation images.
        seed: The same seed gives the same set.
    """
    from supernet.data.shapes import NAMES, make_shapes
    from supernet.errors import UserError

    if train < 1 or val < 1:
        raise UserError(f"--train {train} --val {val}: at least 1 image each")
    if seed < 0:
        raise UserError(f"--seed {seed}: 0 or more")
    for name in ("annotations", "train", "val"):
        if (folder / name).exists():
            raise UserError(f"{folder} already holds {name}: give another folder")
    make_shapes(folder, train=train, val=val, seed=seed)
    return {"data": str(folder), "train": train, "val": val, "names": list(NAMES)}
