"""Draws detections into an image.

Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

import cv2
import numpy as np

from supernet.letterbox import Image

from .found import Found


def draw(image: Image, found: Found, names: list[str]) -> Image:
    """Return a copy of the image with boxes and labels."""
    canvas = np.ascontiguousarray(image[:, :, ::-1])
    thickness = max(1, round(min(image.shape[:2]) / 300))
    font_scale = max(0.4, min(image.shape[:2]) / 900)
    ids = [None] * len(found.scores) if found.ids is None else found.ids
    objects = list(zip(found.boxes_xyxy_px, found.scores, found.labels, ids, strict=True))
    for box, score, label, number in reversed(objects):  # the best is drawn last, on top
        hue = int(label) * 67 % 180
        pixel = np.array([[[hue, 220, 230]]], dtype=np.uint8)
        colour = tuple(int(value) for value in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])
        x0, y0, x1, y1 = (round(float(side)) for side in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, thickness)
        text = f"{names[int(label)]} {score:.2f}" + ("" if number is None else f" #{number}")
        (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, thickness)
        top = y0 if y0 > tall + 4 else min(y0 + tall + 4, canvas.shape[0])
        cv2.rectangle(canvas, (x0, top - tall - 4), (x0 + wide, top), colour, -1)
        cv2.putText(
            canvas, text, (x0, top - 3), cv2.FONT_HERSHEY_SIMPLEX, font_scale, (0, 0, 0), thickness
        )
    return np.ascontiguousarray(canvas[:, :, ::-1]).astype(np.uint8)
