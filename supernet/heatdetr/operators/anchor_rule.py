"""The rule from head maps to detections, as a bundle's card states it."""

from typing import NotRequired, TypedDict

from ...data.score_calibration import CalibrationRule


class AnchorRule(TypedDict):
    """All that decoding needs, for programs without HEAT."""

    stride: int
    anchor_sizes: list[int]
    """Sides of the square anchors, pixels of the network input."""
    anchor_offset: float
    """Place of an anchor in its cell, as a share of the stride."""
    max_shift_px: float
    max_log_growth: float
    score_threshold: float
    """Candidates of lower scores are dropped before NMS."""
    pre_nms: int
    """Most candidates of NMS."""
    nms_iou: float | None
    """None for a one-to-one head, which has no NMS."""
    vote_spread: NotRequired[float]
    """Spread of box voting; absent where boxes stay as they were predicted."""
    voters: NotRequired[int]
    """Candidates that vote."""
    keep: int
    """Most detections of an image."""
    calibration: NotRequired[CalibrationRule]
    """Of the scores of the detections that are kept; absent where they are as the head's."""
