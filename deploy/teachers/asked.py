"""What a user states of a teacher: its file, and what that does not say itself.

Imported by the command line before numpy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["detr-softmax", "detr-sigmoid", "yolo", "yolo-objectness", "nms", "boxes"]
"""What an ONNX file's outputs are; see `outputs.py`."""
Norm = Literal["none", "raw", "imagenet", "inception"]
"""Those of `encoder.PRESETS` that detectors have: 0 to 1, 0 to 255, ImageNet's, -1 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A detector to learn from; the other fields are for files that do not state them.

    Args:
        teacher: Detector to learn from: a bundle, a workspace or checkpoint of HEAT, an ONNX file,
            or a transformers folder.
        teacher_format: Outputs of an ONNX teacher, where they are not recognised: DETR's logits and
            boxes with a softmax or sigmoids, YOLO's raw rows with or without objectness, rows after
            NMS (x1, y1, x2, y2, score, class), or separate boxes, scores and labels.
        teacher_size: Input of an ONNX teacher, HEIGHTxWIDTH, where the file leaves it open.
        teacher_norm: Input values of an ONNX teacher: 0 to 1 (none), 0 to 255 (raw), ImageNet's
            mean and deviation (imagenet), or -1 to 1 (inception).
        teacher_names: Text file of an ONNX teacher's class names, one a line, where the file has
            none.
    """

    teacher: Path | None = None
    teacher_format: Format | None = None
    teacher_size: str | None = None
    teacher_norm: Norm | None = None
    teacher_names: Path | None = None
