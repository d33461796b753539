"""The network as `heat report` draws it: stage by stage, with the milliseconds of each block."""

import re
from dataclasses import dataclass

from supernet.heatdetr.architecture import Architecture

from ..tables import recorded_table
from ..thinning.thinned import Thinned
from ..workspace import Workspace

NAMES = {
    "preprocess": "preprocessing",
    "stem": "stem",
    "repcnn": "RepCNN",
    "wmsa": "window attention",
    "swmsa": "shifted window attention",
    "cw": "channel-wise attention",
    "oa": "self-attention",
    "act": "ACT attention",
    "enact": "ENACT attention",
    "pool": "pooled attention",
    "down": "downsampling",
    "pool_down": "downsampling",
    "fuse": "fusion",
    "lat1": "lateral 1",
    "lat1_fine": "lateral 1, not pooled",
    "lat2": "lateral 2",
    "ffn1": "feed-forward 1",
    "ffn2": "feed-forward 2",
    "up4": "upsampling",
    "t1_cw": "channel-wise attention, twice as wide",
    "head": "head",
    "head_distributions": "head",
    "decode": "decoding and NMS",
    "decode_voted": "decoding, NMS and box voting",
    "top_k": "top-k",
}
"""What operators are called on the page; others by their own name."""
KINDS = {
    "repcnn": "conv", "stem": "conv", "down": "conv", "pool_down": "conv", "fuse": "conv",
    "lat1": "conv", "lat1_fine": "conv", "lat2": "conv",
    "ffn1": "conv", "ffn2": "conv", "up4": "conv",
    "wmsa": "window", "swmsa": "window",
    "preprocess": "ends", "head": "ends", "head_distributions": "ends",
    "decode": "ends", "decode_voted": "ends", "top_k": "ends",
}  # fmt: skip
"""Colour of an operator; all others are global attention."""
GROUPS = (
    (r"preprocess|stem", "Input and stem"),
    (r"(?:down\d|s|sam)([1-4]).*", "Stage {}"),
    (r"scm.*", "SCM, which mixes the stages"),
    (r"tcm.*", "TCM, which attends over all"),
    (r".*", "Head"),
)
"""Names of places, and the row where they are drawn."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the network."""

    place: str
    op: str
    widths: str
    """Input channels, and output channels where they differ."""
    map: str
    """Height x width of its feature map."""
    ms: float
    """Its share of the predicted latency."""

    @property
    def name(self) -> str:
        """What its operator is called."""
        return NAMES.get(self.op, self.op)

    @property
    def kind(self) -> str:
        """Class of its colour."""
        return KINDS.get(self.op, "global")


@dataclass(frozen=True, slots=True)
class Row:
    """A stage of the network, or what comes before and after the stages."""

    title: str
    parts: list[Part]
    removed: str
    """What thinning took from it, in words; empty where that is nothing."""

    @property
    def ms(self) -> float:
        """Milliseconds of all its parts."""
        return sum(part.ms for part in self.parts)


def network_parts(workspace: Workspace, thin: Thinned | None) -> list[Part]:
    """Return the parts of the thinned network; none where its table was measured again."""
    if thin is None:
        return []
    table = recorded_table(workspace, thin.table)
    times, calibration = table.times_ms(), table.calibration
    entries = Architecture.load(workspace.architecture).entries()
    if any(entry not in times for entry in entries.values()):
        return []  # the table was measured again, for another space
    shares = {place: calibration.predict_ms(times[entry], 1) for place, entry in entries.items()}
    # The parts add up to the latency that was predicted, corrections by measuring included.
    scale = thin.predicted_ms / sum(shares.values())
    return [
        Part(
            place=place,
            op=entry.op,
            widths=f"{entry.d_in}" if entry.d_in == entry.d_out else f"{entry.d_in}→{entry.d_out}",
            map=f"{entry.h}x{entry.w}",
            ms=shares[place] * scale,
        )
        for place, entry in entries.items()
    ]


def network_rows(parts: list[Part], thin: Thinned | None) -> list[Row]:
    """Group the parts by stage, in the order in which they are first executed."""
    rows: dict[str, list[Part]] = {}
    for part in parts:
        rows.setdefault(_row_of(part.place), []).append(part)
    return [Row(title, found, _removed(title, thin)) for title, found in rows.items()]


def _row_of(place: str) -> str:
    for pattern, title in GROUPS:
        found = re.fullmatch(pattern, place)
        if found is not None:
            return title.format(*found.groups())
    raise AssertionError(place)  # the last pattern fits every place


def _removed(title: str, thin: Thinned | None) -> str:
    stage = int(title[-1]) if title.startswith("Stage ") else None
    if thin is None or stage is None:
        return ""
    every, left = thin.space.positions[stage - 1], len(thin.positions[stage - 1])
    wide, width = thin.space.widths[stage - 1], thin.widths[stage - 1]
    words = []
    if left < every:
        words.append(f"{every - left} of {every} blocks removed")
    if width < wide:
        words.append(f"{width} of {wide} channels left")
    return ", ".join(words)
