"""The frozen description of a DETR or SAM-DETR, like `Architecture` for a HeatDETR."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..attention import ActAttention, Attention, EnactAttention, PoolAttention
from ..attention.act import ROUNDS
from ..attention.hashing import MAX_ROUNDS
from ..errors import UserError
from ..graph.description import Description
from .resnet import BLOCKS

Family = Literal["detr", "sam-detr"]
EncoderAttention = Literal["exact", "act", "enact", "pool"]


MOST = {
    "num_classes": 100_000, "queries": 10_000, "encoder_layers": 100, "decoder_layers": 100,
    "width": 4096, "heads": 256, "hidden": 65_536, "encoder_hidden": 65_536, "base": 1024,
    "rounds": MAX_ROUNDS, "window": 1_000_000,
}  # fmt: skip
"""Largest numbers that a description may have: one that is corrupt allocates no network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetrArchitecture(Description):
    """Sizes and options of a network of the family; the defaults are DETR with a ResNet-50."""

    invalid: ClassVar[str] = "describes no network of DETR's family"

    family: Family = "detr"
    """detr (Carion et al. 2020), or sam-detr (Zhang et al. 2022)."""
    name: str = "detr-r50"
    """A label for people."""
    num_classes: int = 91
    """Classes; DETR adds one for no object. Published checkpoints have COCO's ids up to 90."""
    input_size: tuple[int, int] = (800, 1344)
    """Height and width of the network input in pixels, multiples of 32."""
    depth: int = 50
    """Of the ResNet: 50 or 18."""
    base: int = 64
    """Channels of its first stage."""
    dc5: bool = False
    """The last stage is dilated: stride 16 instead of 32."""
    frozen: bool = True
    """Normalisation, stem and first stage of the backbone do not train: for pretrained ones."""
    width: int = 256
    """Channels of tokens."""
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048
    """Channels within feed-forward layers."""
    encoder_hidden: int | None = None
    """Those of the encoder, where they are others."""
    levels: int = 1
    """Feature maps that become tokens: 1, or 3 (strides 8, 16 and 32): multi-scale SAM-DETR."""
    queries: int = 100
    """Object queries: most detections of an image."""
    dropout: float = 0.1
    group_norm: bool = False
    """Normalise after the input projection: SAM-DETR's 12-epoch models."""
    smca: bool = False
    """SAM-DETR with spatially modulated attention (Gao et al. 2021)."""
    attention: EncoderAttention = "exact"
    """Core of the encoder's self-attention."""
    rounds: int = ROUNDS
    """Hash functions of ACT, L."""
    clusters: int | tuple[int, ...] | None = None
    """Most clusters of ACT, of all layers or of each; exported graphs need it."""
    window: int | None = None
    """Tokens of a window of ENACT and pool; without it ENACT chooses one for each image."""

    def __post_init__(self) -> None:
        """Refuse sizes and options that no network can have."""
        if len(self.input_size) != 2:
            raise UserError(f"input size {self.input_size}: height and width needed")
        for what, most in MOST.items():
            value = getattr(self, what)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise UserError(f"{what} {value!r}: a whole number from 1 to {most} needed")
        if not (all(type(side) is int for side in self.input_size) and 0 <= self.dropout < 1):
            raise UserError(
                f"input size {self.input_size} and dropout {self.dropout}: whole numbers, and a "
                "rate from 0 to below 1, needed"
            )
        if isinstance(self.clusters, tuple) and len(self.clusters) != self.encoder_layers:
            raise UserError(
                f"clusters {self.clusters}: one bound for each of {self.encoder_layers} layers"
            )
        if self.family not in ("detr", "sam-detr"):
            raise UserError(f"family {self.family!r}: detr or sam-detr needed")
        if self.depth not in BLOCKS:
            raise UserError(f"a ResNet of depth {self.depth}: one of {', '.join(map(str, BLOCKS))}")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width {self.width}: a multiple of 4 and of {self.heads} heads needed")
        if min(self.num_classes, self.queries, self.encoder_layers, self.decoder_layers) < 1:
            raise UserError("at least one class, query and layer of each kind needed")
        if any(side < 32 or side % 32 for side in self.input_size):
            height, width = self.input_size
            raise UserError(
                f"--input-size {height}x{width}: height and width must be multiples of 32"
            )
        if self.attention not in ("exact", "act", "enact", "pool"):
            raise UserError(f"--attention {self.attention}: exact, act, enact or pool needed")
        if self.attention == "pool" and self.window is None:
            raise UserError("--attention pool: --window is needed, for instance 6")
        if self.levels not in (1, 3):
            raise UserError(f"{self.levels} levels: 1 or 3 needed")
        if self.levels > 1 and (self.family, self.dc5, self.attention) != (
            "sam-detr",
            False,
            "exact",
        ):
            raise UserError(
                "3 levels are SAM-DETR's, without DC5; their encoder's attention is deformable: "
                "no act, enact or pool"
            )
        if self.smca and self.family != "sam-detr":
            raise UserError("smca modulates SAM-DETR's attention, not DETR's")

    @property
    def stride(self) -> int:
        """Stride of the coarsest map, in pixels."""
        return 16 if self.dc5 else 32

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every map of tokens, the finest first."""
        height, width = self.input_size
        strides = [self.stride >> level for level in reversed(range(self.levels))]
        return tuple((-(-height // stride), -(-width // stride)) for stride in strides)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the coarsest map."""
        return self.maps[-1]

    def cores(self) -> list[Attention]:
        """Return a core for each layer of the encoder."""
        bounds = self.clusters
        if not isinstance(bounds, tuple):
            return [self._core(bounds) for _ in range(self.encoder_layers)]
        return [self._core(bound) for bound in bounds]

    def _core(self, bound: int | None) -> Attention:
        if self.attention == "act":
            return ActAttention(self.width // self.heads, self.rounds, most=bound)
        if self.attention == "enact":
            return EnactAttention(self.width, "per-image" if self.window is None else self.window)
        if self.attention == "pool":
            assert self.window is not None
            return PoolAttention(self.window)
        return Attention()

    @classmethod
    def restore_tuples(cls, fields: dict[str, Any]) -> None:
        """Replace the lists of JSON by tuples; `KeyError` where one is absent."""
        fields["input_size"] = tuple(fields["input_size"])
        if isinstance(fields["clusters"], list):
            fields["clusters"] = tuple(fields["clusters"])


SMALL = DetrArchitecture(
    name="detr-s", input_size=(320, 320), depth=18, base=32, frozen=False, dc5=True, width=128,
    heads=4, encoder_layers=3, decoder_layers=3, hidden=512, dropout=0.0,
)  # fmt: skip
"""A network that a CPU trains from scratch."""

FAMILY: Mapping[str, DetrArchitecture] = {
    architecture.name: architecture
    for architecture in (
        DetrArchitecture(),
        DetrArchitecture(name="detr-r50-dc5", dc5=True),
        DetrArchitecture(family="sam-detr", name="sam-detr-r50", queries=300, group_norm=True),
        DetrArchitecture(
            family="sam-detr", name="sam-detr-r50-smca", queries=300, group_norm=True, smca=True
        ),
        DetrArchitecture(
            family="sam-detr",
            name="sam-detr-r50-multi-scale",
            queries=300,
            group_norm=True,
            levels=3,
            encoder_hidden=1024,
        ),
        SMALL,
        SMALL.with_(family="sam-detr", name="sam-detr-s", group_norm=True),
    )
}
"""Networks by name: those of the papers, and small ones of our own."""
