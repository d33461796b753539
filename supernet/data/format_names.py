"""The names of the formats of detection sets: all that the command line imports of them."""

from typing import Literal

Format = Literal["coco", "yolo", "voc", "cvat", "label-studio"]
"""COCO and YOLO are trained on; Pascal VOC, CVAT for images and Label Studio are converted."""
