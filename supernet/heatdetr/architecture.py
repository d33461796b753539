"""The frozen description of a HeatDETR network, and the terms its latency is the sum of.

`Architecture.entries` is the one list that the detector is built from, that is priced by the
latency tables and that is counted for MACs and parameters: a network cannot contain anything
that the table does not price.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from ..atomic import write_text
from ..errors import UserError, did_you_mean
from ..graph.description import Description
from .input_size import MAX_SIDE
from .operators import OPERATORS
from .operators.entries import Entry, map_sizes

GlobalBlock = Literal["cw", "oa", "act", "enact", "pool"]
"""The block of S4, SAM_4, SCM and TCM: channel-wise attention, original self-attention, or its
cheaper variants: ACT's clusters, ENACT's windows, average pooling over windows."""

GLOBAL_KINDS: tuple[GlobalBlock, ...] = get_args(GlobalBlock)
CONDENSED = tuple(kind for kind in GLOBAL_KINDS if OPERATORS[kind].weights_of == "oa")
"""Cheaper variants of original self-attention, with the same weights."""

HeadKind = Literal["nms", "voted", "one-to-one"]
"""How detections are selected: class-wise NMS (the paper), the same with box voting, or by score
alone, of a head that was trained to predict each object once."""

NMSHead = Literal["nms", "voted"]
"""The two that are trained in the same way: the weights of one are those of the other."""

DECODES: Mapping[HeadKind, str] = {"nms": "decode", "voted": "decode_voted", "one-to-one": "top_k"}
"""The operator that ends the deployed graph, by kind of head."""

BoxKind = Literal["deltas", "distributions"]
"""What the head predicts of a box: deltas (the paper), or a distribution of each of its sides."""

HEADS: Mapping[BoxKind, str] = {"deltas": "head", "distributions": "head_distributions"}
"""The operator of the head, by what it predicts of a box."""

WIDTH_STEP = 32
"""Head width; every stage width is a multiple of it (spec section 1)."""
MAX_WIDTH, MAX_BLOCKS, MAX_CLASSES = 4096, 1000, 1_000_000
"""More is taken for a damaged file: to build such a network would take all memory."""

LOCAL_OPERATORS = {operator.letter: op for op, operator in OPERATORS.items() if operator.letter}
"""Operators by their letters in local block strings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture(Description):
    """Widths, local blocks and options of one detector (spec sections 1, 2 and 5)."""

    invalid: ClassVar[str] = "is no architecture file"
    family: ClassVar[Literal["heatdetr"]] = "heatdetr"
    added: ClassVar[Mapping[str, object]] = {"boxes": "deltas"}

    name: str = "custom"
    """A label for people; two networks that differ in name only are the same network."""
    widths: tuple[int, int, int, int]
    """D1..D4, multiples of 32."""
    blocks: tuple[str, str, str, str]
    """Local block strings B1..B4 over R (RepCNN), W (WMSA_bn), S (SWMSA_bn)."""
    global_block: GlobalBlock = "cw"
    """The block of S4, SAM_4, SCM and TCM: cw for CPUs, oa or cheaper for large GPUs."""
    token_sparsity: float = 0.0
    """Share of tokens that `oa` passes unchanged (the paper's rho, <= 0.18 there)."""
    act_clusters: float = 0.25
    """Clusters of `act` at most, as a share of the tokens."""
    window: int = 6
    """Tokens of a window of `enact` and `pool`."""
    t1_blocks: int = 2
    """Global blocks of width 2 * D4 before the TCM split (n1)."""
    t2_blocks: int = 3
    """Global blocks of width D4 after it, on the regression half (n2)."""
    num_classes: int = 80
    """K, sigmoid outputs."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides in pixels of the square anchors of each cell."""
    anchor_offset: float = 0.0
    """Anchor centre within its cell, in cells: 0 is the corner (ancestors), 0.5 the middle."""
    output_stride: int = 32
    """Stride of the head's maps: 32 (the paper), or 16 for small objects."""
    head: HeadKind = "nms"
    """The last step of the deployed graph."""
    boxes: BoxKind = "deltas"
    """What the head predicts of a box: deltas (the paper), or a distribution of each side."""
    input_size: tuple[int, int] = (448, 448)
    """Height and width of the network input in pixels, multiples of 32."""

    def __post_init__(self) -> None:
        """Refuse widths, blocks and sizes that no network can have."""
        if len(self.widths) != 4 or any(d < WIDTH_STEP or d % WIDTH_STEP for d in self.widths):
            raise UserError(f"widths {self.widths}: four positive multiples of {WIDTH_STEP} needed")
        for string in self.blocks:
            if not set(string) <= set(LOCAL_OPERATORS):
                known = ", ".join(LOCAL_OPERATORS)
                raise UserError(f"block string {string!r}: only the letters {known} are known")
        if len(self.blocks) != 4:
            raise UserError(f"blocks {self.blocks}: four block strings needed")
        if self.global_block not in GLOBAL_KINDS:
            known = ", ".join(GLOBAL_KINDS)
            raise UserError(f"global block {self.global_block!r}: one of {known}")
        if not 0.0 < self.act_clusters <= 1.0 or self.window < 1:
            raise UserError(
                f"clusters {self.act_clusters} and windows of {self.window}: a share above 0, and "
                "at least 1 token, needed"
            )
        if not 0.0 <= self.token_sparsity < 1.0:
            raise UserError(f"token sparsity {self.token_sparsity}: 0 <= rho < 1 needed")
        if self.num_classes < 1 or not self.anchor_sizes:
            raise UserError("at least one class and one anchor size needed")
        if min(self.anchor_sizes) <= 0 or not 0.0 <= self.anchor_offset <= 1.0:
            raise UserError(
                f"anchors of {self.anchor_sizes} pixels at {self.anchor_offset} of their cell: "
                "sizes above 0, and a share from 0 to 1, needed"
            )
        counts = (self.t1_blocks, self.t2_blocks, self.num_classes, self.window, *self.input_size)
        if not all(isinstance(count, int) for count in (*counts, *self.widths)):
            raise UserError(f"widths, blocks, classes and sizes must be whole numbers: {counts}")
        if self.t1_blocks < 0 or self.t2_blocks < 0:
            raise UserError("t1_blocks and t2_blocks must not be negative")
        if self.output_stride not in (8, 16, 32):
            raise UserError(f"output stride {self.output_stride}: 8, 16 or 32 needed")
        if self.head not in DECODES:
            raise UserError(f"head {self.head!r}: one of {', '.join(DECODES)} needed")
        if self.boxes not in HEADS:
            raise UserError(f"boxes {self.boxes!r}: one of {', '.join(HEADS)} needed")
        if len(self.input_size) != 2:
            raise UserError(f"input size {self.input_size}: height and width needed")
        if any(side < 32 or side % 32 for side in self.input_size):
            height, width = self.input_size
            raise UserError(
                f"--input-size {height}x{width}: height and width must be multiples of 32"
            )
        for what, found, most in (
            ("a width", max(self.widths), MAX_WIDTH),
            ("a side of the input", max(self.input_size), MAX_SIDE),
            ("blocks", max(self.t1_blocks, self.t2_blocks, *map(len, self.blocks)), MAX_BLOCKS),
            ("anchor sizes", len(self.anchor_sizes), MAX_BLOCKS),
            ("classes", self.num_classes, MAX_CLASSES),
        ):
            if found > most:
                raise UserError(f"{what}: {found}, at most {most} can be")

    @property
    def num_anchors(self) -> int:
        """Anchors per cell, A."""
        return len(self.anchor_sizes)

    def entries(self) -> dict[str, Entry]:
        """Return the terms of the latency sum by place, in execution order (spec section 8.3).

        Stage positions are `s1_0 ...`, their global blocks `s1_global ...`. Preprocessing and
        decoding are terms too, so that the sum is the time of what is deployed.
        """
        d1, d2, d3, d4 = self.widths
        sizes = map_sizes(self.input_size)
        g4 = self.global_block
        named = {
            "sparsity": self.token_sparsity,
            "clusters": self.act_clusters,
            "window": self.window,
        }
        out: dict[str, Entry] = {}

        def put(place: str, op: str, stride: int, d_in: int, d_out: int, **more: Any) -> None:
            height, width = sizes[stride]
            out[place] = Entry(op, stride, d_in, d_out, height, width, **more)

        def put_global(place: str, op: GlobalBlock, stride: int, width: int) -> None:
            own = {name: named[name] for name in OPERATORS[op].parameters}
            put(place, op, stride, width, width, **own)

        put("preprocess", "preprocess", 1, 3, 3)
        put("stem", "stem", 1, 3, d1)
        for stage, (stride, width) in enumerate(zip((8, 16, 32, 64), self.widths, strict=True), 1):
            if stage == 2:
                put("down12", "down", 8, d1, d2)
            elif stage > 2:
                before = self.widths[stage - 2]
                put(f"down{stage - 1}{stage}", "pool_down", stride // 4, before, width)
            for position, letter in enumerate(self.blocks[stage - 1]):
                put(f"s{stage}_{position}", LOCAL_OPERATORS[letter], stride, width, width)
            kind: GlobalBlock = g4 if stage == 4 else "cw"
            put_global(f"s{stage}_global", kind, stride, width)
            if stage >= 2:
                put(f"sam{stage}_fuse", "fuse", stride // 2, self.widths[stage - 2], width)
                put_global(f"sam{stage}_global", kind, stride // 2, width)
        put("scm_lat1", "lat1", 8, d2, d4)
        put("scm_lat2", "lat2", 16, d3, d4)
        put("scm_ffn1", "ffn1", 16, d4, d4)
        put("scm_ffn2", "ffn2", 16, d4, d4)
        put_global("scm_global1", g4, 32, d4)
        put("scm_up4", "up4", 32, d4, d4)
        last = self.output_stride
        if last <= 16:
            put("scm_up3", "up4", 16, d4, d4)
        if last == 8:
            put("scm_lat1_fine", "lat1_fine", 8, d2, d4)
            put("scm_up2", "up4", 8, d4, d4)
        put_global("scm_global2", g4, last, d4)
        # T1's blocks are dense under token sparsity: the paper sparsifies single-width tokens.
        named["blocks"] = self.t1_blocks
        t1 = OPERATORS[f"t1_{g4}"]
        put("tcm_t1", f"t1_{g4}", last, d4, d4, **{name: named[name] for name in t1.parameters})
        for index in range(self.t2_blocks):
            put_global(f"tcm_t2_{index}", g4, last, d4)
        shape = {"classes": self.num_classes, "anchors": self.num_anchors}
        outputs = self.num_anchors * (self.num_classes + 5)
        put("head", HEADS[self.boxes], last, d4, outputs, **shape)
        put("decode", DECODES[self.head], last, outputs, 6, **shape)
        return out

    @classmethod
    def restore_tuples(cls, fields: dict[str, Any]) -> None:
        """Replace the lists of JSON by tuples; `KeyError` where one is absent."""
        for key in ("widths", "blocks", "anchor_sizes", "input_size"):
            fields[key] = tuple(fields[key])

    def save(self, path: Path) -> None:
        """Write `architecture.json` atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `architecture.json`."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from None

    def with_stride(self, output_stride: int) -> Self:
        """Return a copy with another output stride and as many anchors, the smallest one cell."""
        sizes = tuple(output_stride * 2**index for index in range(self.num_anchors))
        return self.with_(output_stride=output_stride, anchor_sizes=sizes)


def _preset(name: str, widths: tuple[int, int, int, int], blocks: str, **more: Any) -> Architecture:
    b1, b2, b3, b4 = blocks.split()
    return Architecture(name=name, widths=widths, blocks=(b1, b2, b3, b4), **more)


PRESETS: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _preset("pico", (32, 32, 64, 64), "R R RS R", t1_blocks=1, t2_blocks=1),
        _preset("nano", (32, 64, 96, 128), "R R RSW W", t1_blocks=1, t2_blocks=2),
        _preset("tiny", (128, 128, 256, 384), "R R WSWSWS W"),
        _preset("small", (128, 128, 256, 384), "RR RS RSWSWS RS"),
        _preset("medium", (128, 128, 224, 384), "RR RS RSRSRSRSWSWSWSWSWS RS"),
        _preset("large", (192, 192, 256, 384), "RR RS RSRSRSRSWSWSWSWSWS RS"),
    )
}
"""Table 3's four networks, and two of our own for small CPUs (`pico`, `nano`)."""


def preset(name: str, **changes: Any) -> Architecture:
    """Return a preset by name, with some fields replaced; an unknown name is a `UserError`."""
    if name not in PRESETS:
        near = did_you_mean(name, PRESETS)
        raise UserError(f"unknown preset {name!r}{near}: one of {', '.join(PRESETS)}")
    return PRESETS[name].with_(**changes)
