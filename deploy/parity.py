"""Compares the detections of a runtime with those of torch on the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from supernet.boxes import Detections, iou_matrix
from supernet.detr.set_decode import SetDecode
from supernet.heatdetr.operators.decode import Decode
from supernet.letterbox import Image, letterbox
from supernet.network import Network

from .edge.postprocess import Find
from .edge.session import Session
from .nms_check import violations

MATCH_SCORE = 0.3
"""Detections of at least this score must be found by both."""
MIN_IOU = 0.99
COPY_PX = 0.1
"""Boxes this close are the same box, even where they are clipped to nothing."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Tolerances of a precision."""

    iou: float
    """Least overlap of partners."""
    score: float
    raw_box_px: float
    """Boxes before NMS, over all anchors."""
    unmatched: float
    """Share of the detections that need not have a partner."""


ALLOWED: dict[str, Allowed] = {
    "f32": Allowed(MIN_IOU, 1e-3, 0.1, 0.0),
    "f16": Allowed(0.95, 0.05, 8.0, 0.05),
    "bf16": Allowed(0.8, math.inf, math.inf, 0.1),
    "int8": Allowed(0.5, math.inf, math.inf, 0.25),
}
"""Single precision must agree in every detection. Lower ones are judged by AP where there are
labels; here only gross errors are caught."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences over all images."""

    images: int
    matched: int
    """Detections of score >= 0.3 that both found."""
    unmatched: int
    """Detections of score >= 0.3 that only one found, or that overlap too little."""
    max_box_px: float
    """Largest coordinate difference of matched detections, in network pixels."""
    max_score: float
    """Largest score difference of matched detections."""
    raw_max_box_px: float
    """Largest coordinate difference before NMS, over all anchors clipped to the image."""
    raw_max_score: float
    """Largest score difference before NMS, over all anchors and classes."""
    precision: str = "f32"
    not_finite: int = 0
    """Images on which the artefact gave NaN or infinity."""

    @property
    def allowed(self) -> Allowed:
        """Tolerances of this precision."""
        return ALLOWED[self.precision]

    @property
    def passed(self) -> bool:
        """Whether the artefact computes what torch computes."""
        allowed = self.allowed
        return (
            not self.not_finite
            and self.unmatched <= allowed.unmatched * (self.matched + self.unmatched)
            and self.max_score <= allowed.score
            and self.raw_max_score <= allowed.score
            and self.raw_max_box_px <= allowed.raw_box_px
        )

    @property
    def worst_box_px(self) -> float:
        """Largest box difference, before or after NMS."""
        return largest(self.max_box_px, self.raw_max_box_px)

    @property
    def worst_score(self) -> float:
        """Largest score difference, before or after NMS."""
        return largest(self.max_score, self.raw_max_score)


def largest(one: float, other: float) -> float:
    """Return the larger of two differences; NaN where one of them is NaN, unlike `max`."""
    return float(np.maximum(one, other))


@torch.no_grad()
def compare(
    network: Network,
    find: Find,
    raw_session: Session,
    images: Sequence[Image],
    precision: str = "f32",
) -> Parity:
    """Run torch, the artefact and its raw variant (without NMS) on every image."""
    network = network.deployed()
    size = network.architecture.input_size
    least = ALLOWED[precision].iou
    matched = unmatched = not_finite = 0
    box_px = score = raw_box_px = raw_score = 0.0
    for image in images:
        pixels = letterbox(image, size)[0][None]
        tensor = torch.from_numpy(pixels)
        outputs = network(tensor)
        exact, boxes = network.decode.open(*outputs)
        first, second = (torch.from_numpy(x) for x in raw_session.run({"image": pixels}))
        scores_raw = first.reshape(exact.shape)  # the batch axis may be missing
        raw_score = largest(raw_score, float((scores_raw - exact).abs().max()))
        boxes_raw = network.decode.boxes_px(second.view_as(outputs[1]))
        raw_box_px = largest(raw_box_px, float((boxes - boxes_raw).abs().max()))
        found = [torch.from_numpy(np.asarray(output)) for output in find({"image": pixels})]
        theirs = (found[0], found[1], found[2])
        # Decoding clips boxes, so that NaN and infinity may show in the maps only.
        outputs_finite = [bool(values.isfinite().all()) for values in (first, second, *theirs)]
        not_finite += not all(outputs_finite)
        pairs, unpaired, largest_box, largest_score = match_detections(
            network.decode.select(exact[0], boxes[0]), theirs, least
        )
        if unpaired:
            own = (scores_raw[0], boxes_raw[0])
            unpaired = min(unpaired, unexplained(network.decode, *own, theirs, least))
        matched, unmatched = matched + pairs, unmatched + unpaired
        box_px, score = largest(box_px, largest_box), largest(score, largest_score)
    return Parity(
        images=len(images),
        matched=matched,
        unmatched=unmatched,
        max_box_px=box_px,
        max_score=score,
        raw_max_box_px=raw_box_px,
        raw_max_score=raw_score,
        precision=precision,
        not_finite=not_finite,
    )


Detected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Boxes xyxy [n, 4], scores [n], labels [n]."""


def unexplained(
    decode: Decode | SetDecode,
    scores: torch.Tensor,
    boxes_M4: torch.Tensor,
    theirs: Detected,
    min_iou: float,
) -> int:
    """Count detections that do not follow from the artefact's own scores and boxes before NMS.

    Nearly equal scores, within the tolerances, let NMS keep other boxes than torch's does.
    """
    if isinstance(decode, Decode) and decode.nms:
        allowed = ALLOWED["f32"]
        return violations(
            decode,
            scores,
            boxes_M4,
            theirs,
            least_score=MATCH_SCORE,
            score_tolerance=allowed.score,
            box_tolerance_px=allowed.raw_box_px,
        )
    return match_detections(decode.select(scores, boxes_M4), theirs, min_iou)[1]


def match_detections(
    reference: Detections, theirs: Detected, min_iou: float = MIN_IOU
) -> tuple[int, int, float, float]:
    """Match detections of score >= 0.3 both ways; return pairs, unpaired, largest differences.

    Partners are looked for among all detections of the other side, so that a score of 0.3 on one
    side and 0.2999 on the other is a small difference and not a missing object.
    """
    all_ours = (reference.boxes_xyxy, reference.scores, reference.labels)
    confident = reference.scores >= MATCH_SCORE
    ours = (all_ours[0][confident], all_ours[1][confident], all_ours[2][confident])
    high = theirs[1] >= MATCH_SCORE
    strong = (theirs[0][high], theirs[1][high], theirs[2][high])
    matched = unpaired = 0
    box_px = score = 0.0
    for left, right in ((ours, theirs), (strong, all_ours)):
        same = left[2][:, None] == right[2][None]
        # A box clipped to nothing overlaps with nothing, its own copy included.
        copies = (left[0][:, None] - right[0][None]).abs().amax(-1) <= COPY_PX
        overlap = torch.where(copies, 1.0, iou_matrix(left[0], right[0])) * same
        distance = (left[1][:, None] - right[1][None]).abs()
        distance = torch.where(overlap >= min_iou, distance, torch.inf)
        for row in range(len(left[0])):
            best = int(distance[row].argmin()) if distance.shape[1] else -1
            if best < 0 or not bool(distance[row, best].isfinite()):
                unpaired += 1
                continue
            matched += left is ours
            box_px = max(box_px, float((left[0][row] - right[0][best]).abs().max()))
            score = max(score, abs(float(left[1][row] - right[1][best])))
    return matched, unpaired, box_px, score
