"""A teacher's detections as labels: a COCO set, and a list of those to be checked by a person."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .coco_file import CocoAnnotation, CocoFile, to_bbox
from .evaluate import Found

NEAR = 0.1
"""Scores this close to their threshold are uncertain, on either side of it."""
COLUMNS = ("image", "class", "score", "threshold", "labelled", "annotation_id", "x", "y", "w", "h")


class ImageFound(NamedTuple):
    """An image and what was found on it, classes numbered as the set's."""

    name: str
    """Path below the folder of images."""
    size_hw: tuple[int, int]
    found: Found


class Uncertain(NamedTuple):
    """A detection that may be wrong, or that may be missing among the labels."""

    image: str
    name: str
    score: float
    threshold: float
    annotation_id: int | None
    """None where it was left out."""
    bbox: list[float]


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """The labels of a teacher."""

    file: CocoFile
    uncertain: list[Uncertain]
    """Image by image, those with most of them first."""

    def table(self) -> str:
        """Return the uncertain ones as CSV."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)
        for each in self.uncertain:
            kept = each.annotation_id is not None
            rows.writerow(
                [
                    each.image,
                    each.name,
                    round(each.score, 4),
                    round(each.threshold, 4),
                    "yes" if kept else "no",
                    each.annotation_id if kept else "",
                    *each.bbox,
                ]
            )
        return text.getvalue()


def label_images(
    images: Sequence[ImageFound],
    names: Sequence[str],
    thresholds: Sequence[float],
    info: Mapping[str, object],
) -> PseudoLabels:
    """Return the labels of images: what reaches the threshold of its class, with its score."""
    file: CocoFile = {
        "info": info,
        "images": [],
        "annotations": [],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(names)],
    }
    doubts: list[list[Uncertain]] = []
    for number, image in enumerate(images, 1):
        height, width = image.size_hw
        file["images"].append(
            {"id": number, "file_name": image.name, "width": width, "height": height}
        )
        own: list[Uncertain] = []
        for box, score, label in zip(*image.found, strict=True):
            threshold = thresholds[int(label)]
            bbox = [round(side, 2) for side in to_bbox(box)]
            kept = None
            if score >= threshold:
                kept = len(file["annotations"]) + 1
                file["annotations"].append(_annotation(kept, number, int(label), bbox, score))
            if abs(score - threshold) < NEAR:
                name = names[int(label)]
                own.append(Uncertain(image.name, name, float(score), threshold, kept, bbox))
        doubts.append(own)
    doubts.sort(key=len, reverse=True)
    return PseudoLabels(file, [each for own in doubts for each in own])


def _annotation(
    number: int, image_id: int, label: int, bbox: list[float], score: float
) -> CocoAnnotation:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": bbox,
        "area": round(bbox[2] * bbox[3], 2),
        "iscrowd": 0,
        "score": round(float(score), 4),
    }
