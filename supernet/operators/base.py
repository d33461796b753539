"""What the operator table holds for each operator: its module, its cost, its deployed form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ..architecture import Entry, Macs

Shape = tuple[int, int, int]
"""Channels, height, width of a map without its batch axis."""


class Unit(Protocol):
    """A module that is one latency entry: runs in torch and writes its own ONNX nodes.

    Both take the entry's inputs in order and return one value, or a tuple where the entry has
    several outputs. `emit(graph, *values)` needs the folded module.
    """

    __call__: Callable[..., Any]
    emit: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the operator table."""

    build: Callable[[Entry], nn.Module]
    """Make the training-form module of an entry."""
    macs: Callable[[Entry], Macs]
    """Multiply-adds for one image, in closed form."""
    params: Callable[[Entry], int]
    """Parameters after folding, in closed form."""
    inputs: Callable[[Entry], tuple[Shape, ...]]
    """Shapes of the inputs."""
    outputs: Callable[[Entry], tuple[Shape, ...]]
    """Shapes of the outputs."""


def same_shape(entry: Entry) -> tuple[Shape, ...]:
    """Return the one shape of an entry that keeps its map."""
    return ((entry.d_in, entry.h, entry.w),)


def no_macs(entry: Entry) -> Macs:
    """Count nothing: the entry has no multiply-adds in the paper's convention."""
    return Macs()


def no_params(entry: Entry) -> int:
    """Count nothing."""
    return 0
