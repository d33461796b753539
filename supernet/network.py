"""What every network offers to training, evaluation and deployment: HeatDETR, or DETR's family.

`Network` is the interface; `Detector` (with its subclass `Supernet`) and `Host` implement it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import onnx
from torch import Tensor, nn

from .boxes import Detections
from .detr.detr import Detr, Host
from .detr.family import FAMILY, DetrArchitecture
from .detr.multi_scale import MultiScaleSamDetr
from .detr.sam_detr import SamDetr
from .detr.set_decode import SetDecode
from .errors import UserError, did_you_mean
from .graph.style import GraphStyle
from .heatdetr.architecture import PRESETS, Architecture
from .heatdetr.detector import Detector
from .heatdetr.operators.decode import Decode

AnyArchitecture = Architecture | DetrArchitecture
"""`family` distinguishes them."""


class Network(Protocol):
    """A torch module that detects objects and is deployed as one ONNX graph."""

    @property
    def architecture(self) -> AnyArchitecture:
        """The description that the network was built from."""

    @property
    def decode(self) -> Decode | SetDecode:
        """Turns outputs into detections."""

    @property
    def heatdetr(self) -> Detector | None:
        """The network, if it is a HeatDETR: INT8, `parts` and pretrained backbones need one."""

    @property
    def detr(self) -> Host | None:
        """The network, if it is of DETR's family: MTKD needs one."""

    def __call__(self, image: Tensor, /) -> tuple[Tensor, ...]:
        """Map uint8 RGB images [B, H, W, 3] to what `decode` takes."""

    def detect(self, image: Tensor, /) -> list[Detections]:
        """Run and decode; boxes in pixels of the network input."""

    def deployed(self) -> Self:
        """Return a copy as it is deployed, in evaluation mode."""

    def to_onnx(
        self,
        metadata: dict[str, str] | None = None,
        *,
        raw: bool = False,
        style: GraphStyle | None = None,
        padded: bool = False,
        batch: int = 1,
    ) -> onnx.ModelProto:
        """Write the deployed graph; with `raw`, without decoding."""

    def check_format(self, precision: str, *, raw: bool, dynamic_batch: bool) -> None:
        """Raise `UserError` where the network cannot be deployed in this format."""

    def record_clusters(self, bounds: Sequence[int]) -> None:
        """Keep the bounds on ACT's clusters, by layer, in the architecture."""

    def set_drop_path(self, rate: float) -> None:
        """Set the largest stochastic depth rate, where there is stochastic depth."""

    def class_rows(self) -> Mapping[str, tuple[int, int]]:
        """Return the tensors whose first axis are classes: (G groups of K rows, further rows)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers by name, as `nn.Module` does."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights, as `nn.Module` does."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield the module and all its parts, as `nn.Module` does."""

    def eval(self) -> Self:
        """Switch to evaluation mode, as `nn.Module` does."""


def build(architecture: AnyArchitecture) -> Detector | Host:
    """Return a network with fresh weights."""
    if architecture.family == "heatdetr":
        return Detector(architecture)
    return build_detr(architecture)


def build_detr(architecture: DetrArchitecture) -> Host:
    """Return a network of DETR's family with fresh weights."""
    if architecture.levels > 1:
        return MultiScaleSamDetr(architecture)
    return SamDetr(architecture) if architecture.family == "sam-detr" else Detr(architecture)


def read_architecture(text: str, source: str) -> AnyArchitecture:
    """Read the JSON of either kind; raise `UserError` naming what is wrong."""
    try:
        family = "family" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        family = False
    return (DetrArchitecture if family else Architecture).from_json(text, source)


def find_architecture(name: str) -> AnyArchitecture:
    """Return a preset by name, or the architecture of a .json file."""
    if name.endswith(".json"):
        path = Path(name)
        try:
            return read_architecture(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
    known: dict[str, AnyArchitecture] = {**PRESETS, **FAMILY}
    if name not in known:
        near = did_you_mean(name, known)
        raise UserError(f"unknown preset {name!r}{near}: one of {', '.join(known)}")
    return known[name]
