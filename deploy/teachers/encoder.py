"""Encoders: networks whose features a backbone learns. They are given images, and return maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from supernet.errors import UserError

from .maps import SHAPES, FeatureMap, Maps, deepest, feature_map

Images = npt.NDArray[np.uint8]
"""RGB images of one size, [B, H, W, 3]."""
DEFAULT_HW = (224, 224)
"""Input of an encoder that takes any size."""


class Normalisation(NamedTuple):
    """What an encoder's input is: `(pixels / 255 - mean) / std`, by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        """Return the text of a log line."""
        return f"mean {' '.join(map(str, self.mean))}, std {' '.join(map(str, self.std))}"


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESETS: dict[str, Normalisation] = {
    "imagenet": IMAGENET,
    "dino": IMAGENET,
    "clip": Normalisation(
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    "inception": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "raw": Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Normalisations by name: `none` is 0 to 1, `raw` 0 to 255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRequest:
    """Which encoder is asked for, and what of it is given instead of found."""

    source: str
    """An ONNX file, a folder of transformers, or `timm:NAME`."""
    features: tuple[str, ...] = ()
    """Outputs to learn; found where none are named."""
    input_hw: tuple[int, int] | None = None
    """Pixels of its input; its own size by default."""
    normalisation: Normalisation | None = None
    """What its input is; as the encoder states it by default, else ImageNet's."""
    threads: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFacts:
    """What was found of an encoder."""

    name: str
    digest: str
    """Hash of its weights."""
    input_hw: tuple[int, int]
    normalisation: Normalisation
    maps: tuple[FeatureMap, ...]
    """The features to learn."""
    others: tuple[FeatureMap, ...] = ()
    """What else could be learnt."""

    def __str__(self) -> str:
        """Return the text of a log line."""
        others = f"; not used: {', '.join(m.name for m in self.others)}" if self.others else ""
        height, width = self.input_hw
        return (
            f"{self.name} at {height}x{width} ({self.normalisation}), features "
            f"{', '.join(map(str, self.maps))}{others}"
        )


class Encoder(Protocol):
    """A loaded encoder."""

    def facts(self) -> EncoderFacts:
        """Return what was found of it."""

    def features(self, images_BHW3: Images) -> list[Maps]:
        """Return its features of images of its input size, a map for each of `facts().maps`."""


def normalised(images_BHW3: Images, by: Normalisation) -> npt.NDArray[np.float32]:
    """Return the input of an encoder, [B, 3, H, W]."""
    scale = 1 / (255 * np.array(by.std, np.float32))
    shift = np.array(by.mean, np.float32) / np.array(by.std, np.float32)
    return np.ascontiguousarray((images_BHW3 * scale - shift).transpose(0, 3, 1, 2))


def choose(
    outputs: dict[str, tuple[int, ...]],
    request: EncoderRequest,
    input_hw: tuple[int, int],
    *,
    channels_first: bool = True,
    hint: str = "",
) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
    """Return the features to learn, and the others, of outputs given by name and shape."""
    found = {
        name: feature_map(name, shape, input_hw, channels_first=channels_first)
        for name, shape in outputs.items()
    }
    for name in request.features:
        if found.get(name) is None:
            raise UserError(
                f"--feature {name} of {request.source} is {list(outputs[name])} for an input of "
                f"{input_hw[0]}x{input_hw[1]}: {SHAPES} is needed"
            )
    usable = [value for value in found.values() if value is not None]
    if not usable:
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in list(outputs.items())[:5])
        raise UserError(f"no output of {request.source} can be features ({shown}): {SHAPES}{hint}")
    named = [m for m in usable if m.name in request.features] or [deepest(usable)]
    return tuple(named), tuple(m for m in usable if m not in named)


def facts_of(
    request: EncoderRequest,
    digest: str,
    normalisation: Normalisation,
    input_hw: tuple[int, int],
    chosen: tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]],
) -> EncoderFacts:
    """Return the facts of an encoder whose features were chosen."""
    return EncoderFacts(
        name=request.source.rstrip("/").rpartition("/")[2],
        digest=digest,
        input_hw=input_hw,
        normalisation=normalisation,
        maps=chosen[0],
        others=chosen[1],
    )


def image_like(input_hw: tuple[int, int]) -> Images:
    """Return one image of noise, to run an encoder on."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *input_hw, 3))
    return np.asarray(noise, dtype=np.uint8)


def named_shapes(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of outputs, arrays or tensors, by name."""
    return {name: tuple(array.shape) for name, array in zip(names, arrays, strict=True)}
