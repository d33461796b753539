"""Work recorded as a CUDA graph: one launch for all kernels, on inputs that stay where they are."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WARMUPS = 3
"""Runs before the recording: libraries choose their kernels and allocate in them."""

Work = Callable[[Sequence[Tensor]], Sequence[Any]]
"""Maps inputs to outputs, without a step that waits for values on the host."""


class Recorded(Protocol):
    """Recorded work; `Recorder` is its class, called with the work and its inputs."""

    inputs: list[Tensor]
    """Tensors that the work reads: what is copied into them, the next replay uses."""

    def replay(self) -> list[Any]:
        """Run the work once more, and return its outputs, always the same tensors."""


Recorder = Callable[[Work, Sequence[Tensor]], Recorded]


class CudaGraph:
    """Work recorded on a GPU."""

    def __init__(self, work: Work, inputs: Sequence[Tensor]) -> None:
        """Run the work on a stream of its own, as torch asks, then record it."""
        self.inputs = list(inputs)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                work(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = list(work(self.inputs))

    def replay(self) -> list[Any]:
        """Launch the graph."""
        self._graph.replay()
        return self._outputs


class CpuGraph:
    """A stand-in on a CPU, for rehearsals and tests: the work itself, behind the same interface."""

    def __init__(self, work: Work, inputs: Sequence[Tensor]) -> None:
        """Run the work for the first time."""
        self.inputs, self._work = list(inputs), work
        self._outputs = list(work(self.inputs))

    def replay(self) -> list[Any]:
        """Run the work, and write its results where the first ones are."""
        for kept, new in zip(self._outputs, self._work(self.inputs), strict=True):
            kept.copy_(new)
        return self._outputs
