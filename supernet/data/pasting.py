"""Objects of one training image, pasted into another: Ghiasi et al. 2021, for boxes."""

import numpy as np
import numpy.typing as npt

from .greedy_match import shares_within
from .joined_weights import joined_weights
from .labelled_image import LabelledImage

MOST = 3
"""Objects that are pasted into an image."""
MOST_HIDDEN = 0.3
"""Share of an object that a pasted one may hide."""
LEAST_SIDE_PX = 4


def paste_objects(
    image: LabelledImage, donor: LabelledImage, rng: np.random.Generator
) -> LabelledImage:
    """Return an image with up to three objects of a donor, as rectangles at random places.

    Both are network inputs. Of the donor's classes each is as likely as the others, however many
    objects it has. What would hide more than 0.3 of an object, or be smaller than 4 pixels, is left
    out.
    """
    count = min(MOST, len(donor.labels))
    if not count:
        return image
    share_N = 1 / np.bincount(donor.labels)[donor.labels]
    chosen = rng.choice(len(donor.labels), count, replace=False, p=share_N / share_N.sum())
    pixels, boxes_N4, kept = image.pixels.copy(), image.boxes_xyxy, []
    for index in map(int, chosen):
        left, top, right, low = donor.boxes_xyxy[index].round().astype(int).tolist()
        cut = donor.pixels[top:low, left:right]
        h, w = cut.shape[:2]
        room_h, room_w = pixels.shape[0] - h, pixels.shape[1] - w
        if min(h, w) < LEAST_SIDE_PX or min(room_h, room_w) < 0:
            continue
        y, x = int(rng.integers(room_h + 1)), int(rng.integers(room_w + 1))
        box_14 = np.array([[x, y, x + w, y + h]], boxes_N4.dtype)
        if (shares_within(boxes_N4, box_14) > MOST_HIDDEN).any():
            continue
        pixels[y : y + h, x : x + w] = cut
        boxes_N4 = np.concatenate([boxes_N4, box_14])
        kept.append(index)
    pasted = LabelledImage(
        pixels, boxes_N4[len(image.labels) :], donor.labels[kept], _taken(donor.weights, kept)
    )
    labels = np.concatenate([image.labels, pasted.labels])
    return LabelledImage(pixels, boxes_N4, labels, joined_weights([image, pasted]))


def _taken(
    weights: npt.NDArray[np.float32] | None, rows: list[int]
) -> npt.NDArray[np.float32] | None:
    return None if weights is None else weights[rows]
