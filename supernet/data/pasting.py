"""Objects of one training image, pasted into another: Ghiasi et al. 2021, for boxes."""

from dataclasses import replace

import numpy as np

from .augment import joined, seen_in
from .greedy_match import shares_within
from .labelled_image import LabelledImage

MOST = 3
"""Rectangles that are pasted into an image."""
MOST_HIDDEN = 0.3
"""Share of an object that pasted ones may hide, all together."""
LEAST_SIDE_PX = 4


def paste_objects(
    image: LabelledImage, donor: LabelledImage, rng: np.random.Generator
) -> LabelledImage:
    """Return an image with up to three objects of a donor, as rectangles at random places.

    Both are network inputs. Of the donor's classes each is as likely as the others, however many
    objects it has. Other objects that are seen in a rectangle come with it, as in a crop. What
    would hide more than 0.3 of an object, or be smaller than 4 pixels, is left out.
    """
    count = min(MOST, len(donor.labels))
    if not count:
        return image
    share_N = 1 / np.bincount(donor.labels)[donor.labels]
    chosen = rng.choice(len(donor.labels), count, replace=False, p=share_N / share_N.sum())
    pixels, parts = image.pixels.copy(), [image]
    boxes_N4, hidden_N = image.boxes_xyxy, np.zeros(len(image.labels))
    for index in map(int, chosen):
        part_4 = donor.boxes_xyxy[index].round().astype(int)
        left, top, right, low = part_4.tolist()
        cut = donor.pixels[top:low, left:right]
        h, w = cut.shape[:2]
        room_h, room_w = pixels.shape[0] - h, pixels.shape[1] - w
        if min(h, w) < LEAST_SIDE_PX or min(room_h, room_w) < 0:
            continue
        y, x = int(rng.integers(room_h + 1)), int(rng.integers(room_w + 1))
        hides_N = hidden_N + shares_within(boxes_N4, np.array([[x, y, x + w, y + h]]))[:, 0]
        if (hides_N > MOST_HIDDEN).any():
            continue
        pixels[y : y + h, x : x + w] = cut
        seen = seen_in(donor, part_4)
        moved_K4 = (seen.boxes_xyxy + np.tile([x - left, y - top], 2)).astype(boxes_N4.dtype)
        parts.append(replace(seen, boxes_xyxy=moved_K4))
        boxes_N4 = np.concatenate([boxes_N4, moved_K4])
        hidden_N = np.concatenate([hides_N, np.zeros(len(moved_K4))])
    return joined(pixels, parts)
