"""Small models that measure an entry between neighbours, as in a network (spec section 8.4).

The time of a single operator includes the session's boundary: copies, layout changes, the call
itself. So each entry's time is a signed sum of model times in which those costs cancel:

- entries that keep their map: `(t(three in a row) - t(one)) / 2`;
- all others: a sandwich between caps (1x1 convolution and ReLU), minus the caps. Caps instead of
  the spec's RepCNN blocks: nine times cheaper, so that less noise is subtracted;
- the stem has no cap at the input and the head none at the output, so that the fixed cost of a run
  is counted once.
"""

from dataclasses import dataclass
from typing import Literal

from supernet.heatdetr.architecture import HEADS
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

ENDS: dict[str, "Kind"] = {"decode": "decoded", "decode_voted": "voted", "top_k": "picked"}
"""Kind of the probe, a head followed by the operator, for each operator that ends a network."""

Kind = Literal["cap", "chain", "sandwich", "preprocessed", "decoded", "voted", "picked", "alone"]


@dataclass(frozen=True, slots=True)
class ProbeModel:
    """A model to be timed: caps in a row, an entry repeated, or an entry between caps.

    A model of kind `alone` is a single entry; its file size is the entry's.
    """

    kind: Kind
    entry: Entry
    """The entry; for caps one with the map's width and size."""
    count: int = 1

    @property
    def key(self) -> str:
        """Name of the model in results and in packs."""
        e = self.entry
        sizes = f"{e.op}-{e.stride}-{e.d_in}-{e.d_out}-{e.h}x{e.w}"
        more = (e.classes, e.anchors, e.sparsity, e.clusters, e.window, e.blocks)
        return f"{self.kind}{self.count}-{sizes}-" + "-".join(f"{value:g}" for value in more)


def cap_entry(channels: int, h: int, w: int) -> Entry:
    """Return the entry of a probe of caps on a map."""
    return Entry("cap", 0, channels, channels, h, w)


def terms(entry: Entry) -> dict[ProbeModel, float]:
    """Return the models whose times, weighted, add up to the entry's milliseconds."""
    if OPERATORS[entry.op].keeps_map:
        return {ProbeModel("chain", entry, 3): 0.5, ProbeModel("chain", entry, 1): -0.5}
    if entry.op == "preprocess":
        stem = Entry("stem", 1, 3, 32, entry.h, entry.w)
        return {ProbeModel("preprocessed", stem): 1.0, ProbeModel("sandwich", stem): -1.0}
    if entry.op in ENDS:
        head = head_of(entry)
        return {ProbeModel(ENDS[entry.op], head): 1.0, ProbeModel("sandwich", head): -1.0}
    operator = OPERATORS[entry.op]
    total: dict[ProbeModel, float] = {ProbeModel("sandwich", entry): 1.0}

    def subtract(shape: tuple[int, int, int], *, with_fixed_cost: bool) -> None:
        cap = cap_entry(*shape)
        parts = {1: -1.0} if with_fixed_cost else {3: -0.5, 1: 0.5}
        for count, sign in parts.items():
            probe = ProbeModel("cap", cap, count)
            total[probe] = total.get(probe, 0.0) + sign

    if entry.op != "stem":
        for index, shape in enumerate(operator.inputs(entry)):
            subtract(shape, with_fixed_cost=index == 0)
    if entry.op not in HEADS.values():
        for shape in operator.outputs(entry):
            subtract(shape, with_fixed_cost=False)
    return total


def head_of(decode: Entry) -> Entry:
    """Return the narrowest head entry in front of a decode entry."""
    outputs = decode.anchors * (decode.classes + 5)
    return decode.with_(op="head", d_in=32, d_out=outputs)


def decode_of(head: Entry, kind: str) -> Entry:
    """Return the entry after a head entry in a probe of a kind among `ENDS`."""
    op = next(op for op, ends in ENDS.items() if ends == kind)
    return head.with_(op=op, d_in=0, d_out=6)
