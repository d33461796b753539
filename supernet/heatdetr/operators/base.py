"""A row of the operator table: an operator's module, its costs, its deployed form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from .cutting import Streams
from .entries import Entry, Macs

Shape = tuple[int, int, int]
"""Channels, height, width of a map without its batch axis."""


class Unit(Protocol):
    """A module that is one latency entry: runs in torch and writes its own ONNX nodes.

    Both take the entry's inputs in order and return one value, or a tuple where the entry has
    several outputs. `emit(graph, *values)` needs the folded module.
    """

    __call__: Callable[..., Any]
    emit: Callable[..., Any]


def narrowest(entry: Entry) -> Entry:
    """Return an entry at 32 channels in and out."""
    return replace(entry, d_in=32, d_out=32)


def as_it_is(entry: Entry) -> Entry:
    """Return the entry: its widths follow from elsewhere."""
    return entry


def no_scales(unit: Any) -> Sequence[Tensor]:
    """Return nothing: the unit adds nothing to its stage's residual stream."""
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One row of the operator table: all that the rest of HEAT uses of an operator."""

    build: Callable[[Entry], nn.Module]
    """Builds the training-form module of an entry."""
    macs: Callable[[Entry], Macs]
    """Multiply-adds for one image, in closed form."""
    params: Callable[[Entry], int]
    """Parameters after folding, in closed form."""
    inputs: Callable[[Entry], tuple[Shape, ...]]
    """Shapes of the inputs."""
    outputs: Callable[[Entry], tuple[Shape, ...]]
    """Shapes of the outputs."""
    parameters: tuple[str, ...] = ()
    """Fields of its entries besides the sizes: two at most, as many as a table has columns."""
    keeps_map: bool = False
    """Whether the output can be the input of the same operator again: probes repeat it in a row."""
    hidden: int = 0
    """Channels of the widest map inside, in widths of the output."""
    narrow: Callable[[Entry], Entry] = narrowest
    """The same entry at the smallest widths: its graph has as many nodes as at any other."""
    letter: str = ""
    """Its letter in block strings, of an operator for local positions."""
    reduction: str = ""
    """The thinning move that takes it away from a local position."""
    weights_of: str = ""
    """Another operator whose weights this one takes unchanged."""
    inherit: Callable[[Any, Any, Streams], None] | None = None
    """Copies the weights of a wide unit into a narrow one (old, new); None where there are none."""
    scales: Callable[[Any], Sequence[Tensor]] = no_scales
    """|gamma| of the last BatchNorm of each branch that is added to the residual stream."""


def same_shape(entry: Entry) -> tuple[Shape, ...]:
    """Return the one shape of an entry that keeps its map."""
    return ((entry.d_in, entry.h, entry.w),)


def no_macs(entry: Entry) -> Macs:
    """Count nothing: the entry has no multiply-adds in the paper's convention."""
    return Macs()


def no_params(entry: Entry) -> int:
    """Count nothing: the entry has no weights."""
    return 0
