"""Writes detections as labels, to be corrected in a labelling tool and trained on.

Every bundle's `detect.py` carries this file's text.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from supernet.errors import DataError

from .found import Found
from .saving import below_shared, check_above, renamed, write_whole

LABEL_KINDS = ("coco", "yolo")


class CocoImage(TypedDict):
    """An image in COCO's file."""

    id: int
    file_name: str
    height: int
    width: int


class CocoBox(TypedDict):
    """An object in COCO's file; `score` is not COCO's."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    """Left, top, width and height in pixels."""
    area: float
    iscrowd: int
    score: float


class Labels:
    """Labels of images in COCO's format (labels.json) or YOLO's (labels/NAME.txt, classes.txt).

    They never replace a file: it may have been corrected by hand.
    """

    def __init__(
        self, kind: str, folder: Path, names: Sequence[str], paths: Sequence[Path]
    ) -> None:
        """Refuse paths that exist already, before anything is written."""
        self._kind, self._folder, self._names = kind, folder, list(names)
        self._images: list[CocoImage] = []
        self._boxes: list[CocoBox] = []
        below = below_shared(paths)
        self._relative = {p: b / p.name for p, b in zip(paths, below, strict=True)}
        targets = [folder / "labels.json"]
        if kind == "yolo":
            targets = [self._text_path(path) for path in paths]
        twice = [target for target, count in Counter(targets).items() if count > 1]
        if twice:
            raise DataError(f"--labels yolo: two images have their labels in {twice[0]}")
        for target in targets:
            check_above(target)
            if target.exists():
                raise DataError(f"--labels {kind}: {target} is there already: another --save")
        classes = folder / "labels" / "classes.txt"
        if kind == "yolo" and classes.exists() and classes.read_bytes() != self._classes():
            raise DataError(f"--labels yolo: {classes} has other classes: another --save")

    def _classes(self) -> bytes:
        return "".join(f"{name}\n" for name in self._names).encode()

    def _text_path(self, path: Path) -> Path:
        relative = self._relative[path]
        plain = self._folder / "labels" / relative.with_suffix("")
        return renamed(plain, ".txt")

    def add(self, path: Path, image_hw: tuple[int, int], found: Found) -> None:
        """Add an image with its objects."""
        height, width = image_hw
        boxes = list(zip(found.boxes_xyxy_px.tolist(), found.labels.tolist(), strict=True))
        if self._kind == "yolo":
            lines = [
                f"{label} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} "
                f"{(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}\n"
                for (x0, y0, x1, y1), label in boxes
            ]
            write_whole(self._text_path(path), "".join(lines).encode())
            return
        number = len(self._images) + 1
        name = self._relative[path].as_posix()
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        for ((x0, y0, x1, y1), label), score in zip(boxes, found.scores.tolist(), strict=True):
            self._boxes.append(
                {
                    "id": len(self._boxes) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [round(side, 2) for side in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                    "score": round(score, 4),
                }
            )

    def close(self) -> None:
        """Write COCO's file, or the names of YOLO's classes."""
        if self._kind == "yolo":
            write_whole(self._folder / "labels" / "classes.txt", self._classes())
            return
        categories = [{"id": n, "name": name} for n, name in enumerate(self._names, 1)]
        content = {
            "images": self._images, "annotations": self._boxes, "categories": categories
        }  # fmt: skip
        write_whole(self._folder / "labels.json", (json.dumps(content) + "\n").encode())
