"""What is timed and how: a model and its inputs, runtime, precision and threads; the references.

Needs numpy and the runtime only: the probe carries this file's text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.edge.session import Session

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each input by name."""

REFERENCES = ("network", "compute", "memory", "small")
"""Models that tell the state of the machine, timed in every batch (`references.py`)."""


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX model and the inputs it takes."""

    onnx: bytes
    inputs: Shapes
    opener: Callable[["Setting"], Session] | None = None
    """Opens it where it is no file: a torch module, in the process that has it."""
    file: Path | None = None
    """A file of it, in any format that the runtime reads, in the place of `onnx`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How models are executed."""

    runtime: str
    precision: str
    threads: int
    device: str = "cpu"
    """cpu or cuda."""
    spinning: str = "brief"
    """How ONNX Runtime's threads wait: brief, always (as it does by itself) or never."""
    pinning: bool = False
    """Whether each thread is kept on one core."""

    @property
    def spins(self) -> bool | None:
        """Whether threads that wait spin, as `open_session` takes it: None for briefly."""
        return {"always": True, "never": False}.get(self.spinning)

    @property
    def graph_precision(self) -> str:
        """The precision that the graph itself must be written in; the rest is the runtime's.

        OpenVINO computes a float32 graph in half precision by itself; the others take what they
        are given.
        """
        if self.precision == "int8" or self.runtime in ("onnxruntime", "tensorrt"):
            return self.precision
        return "f32"


REFERENCE_PREFIX = "reference-"


def key_of(reference: str) -> str:
    """Return the key of a reference among the models of a batch or a pack."""
    return f"{REFERENCE_PREFIX}{reference}"
