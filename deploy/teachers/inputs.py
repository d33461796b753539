"""How an image becomes the input of a foreign detector: size, layout, type, normalisation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from supernet.errors import UserError
from supernet.letterbox import Image, box_factors, letterbox, resized

from ..edge.session import Array
from .encoder import Normalisation, normalised


@dataclass(frozen=True, slots=True)
class Fit:
    """The size of the input; without `input_hw` by the sides of the image."""

    input_hw: tuple[int, int] | None = None
    stretch: bool = True
    """Whether the ratio of the sides is changed; else the rest is padded."""
    shortest: int = 800
    longest: int = 1333
    """Limits of the sides where `input_hw` is None, in pixels; the ratio is kept."""

    def hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the input for an image."""
        if self.input_hw is not None:
            return self.input_hw
        scale = min(self.shortest / min(image_hw), self.longest / max(image_hw))
        return round(image_hw[0] * scale), round(image_hw[1] * scale)


@dataclass(frozen=True, slots=True)
class InputRule:
    """How images are prepared."""

    fit: Fit
    values: Normalisation
    channels_last: bool = False
    dtype: npt.DTypeLike = np.float32

    def prepare(self, image: Image) -> tuple[Array, Array]:
        """Return the input [1, ...], and image pixels for each of its pixels as (x, y, x, y)."""
        height, width = image.shape[:2]
        hw = self.fit.hw((height, width))
        if self.fit.stretch or self.fit.input_hw is None:
            pixels = resized(image, hw)
            ratio = np.array([width / hw[1], height / hw[0]] * 2, dtype=np.float32)
        else:
            pixels, scale = letterbox(image, hw)
            ratio = np.float32(1) / box_factors((height, width), scale)
        values: Array = pixels[None]
        if np.dtype(self.dtype) == np.uint8:
            values = values if self.channels_last else values.transpose(0, 3, 1, 2)
        else:
            values = normalised(values, self.values).astype(self.dtype)
            values = values.transpose(0, 2, 3, 1) if self.channels_last else values
        return np.ascontiguousarray(values), ratio


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Return a JSON object that lies beside a model; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object")
    return found


def stated_values(processor: Mapping[str, Any]) -> Normalisation:
    """Return the normalisation that a `preprocessor_config.json` states."""
    try:
        unit = 1.0  # of a pixel value of 255
        if not processor.get("do_rescale", True):
            unit = 1 / 255
        elif "rescale_factor" in processor:
            unit = 1 / (255 * float(processor["rescale_factor"]))
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if processor.get("do_normalize", True) and processor.get("image_mean") is not None:
            mean, std = processor["image_mean"], processor["image_std"]
        (m1, m2, m3), (s1, s2, s3) = mean, std
        return Normalisation((m1 * unit, m2 * unit, m3 * unit), (s1 * unit, s2 * unit, s3 * unit))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"preprocessor_config.json: no mean and deviation ({error})") from None


def stated_fit(processor: Mapping[str, Any]) -> Fit:
    """Return the size that a `preprocessor_config.json` states."""
    size = processor.get("size")
    try:
        if isinstance(size, dict) and "height" in size:
            return Fit((int(size["height"]), int(size["width"])))
        if isinstance(size, int):  # as older versions of transformers wrote it
            return Fit(None, shortest=size, longest=int(processor.get("max_size") or 1333))
        if isinstance(size, dict):
            return Fit(
                None,
                shortest=int(size["shortest_edge"]),
                longest=int(size.get("longest_edge") or 1333),
            )
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"preprocessor_config.json: size {size} is not known ({error})") from None
    return Fit(None)


def to_image(boxes_xyxy: Array, ratio: Array, image_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Map boxes [N, 4] from pixels of the input to those of the image, clipped to it."""
    limit = np.array(image_hw[::-1] * 2, dtype=np.float32)
    found: npt.NDArray[np.float32] = np.clip(boxes_xyxy * ratio, 0, limit).astype(np.float32)
    return found
