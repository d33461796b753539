"""A model and its inputs, the setting it is executed in, and the names of the reference models.

Needs numpy and the runtime only: the probe carries this file's text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.edge.session import Session

from .records import SettingRecord

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each input by name."""

REFERENCES = ("network", "compute", "memory", "small")
"""Names of the reference models: timed in every batch, they show how fast the machine is at the
moment (`references.py`)."""


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX model and its inputs."""

    onnx: bytes
    inputs: Shapes
    opener: Callable[["Setting"], Session] | None = None
    """Opens a session on a model that is no file: a torch module of this process."""
    file: Path | None = None
    """A file in any format that the runtime reads, instead of `onnx`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How models are executed."""

    runtime: str
    precision: str
    threads: int
    device: str = "cpu"
    """cpu or cuda."""
    spinning: str = "brief"
    """How long ONNX Runtime's idle threads spin: brief, always (its default) or never."""
    pinning: bool = False
    """Whether each thread is pinned to one core."""

    def to_json(self) -> SettingRecord:
        """Return the fields as JSON values."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "threads": self.threads,
            "device": self.device,
            "spinning": self.spinning,
            "pinning": self.pinning,
        }

    @property
    def spins(self) -> bool | None:
        """The argument `spinning` of `open_session`: None for brief."""
        return {"always": True, "never": False}.get(self.spinning)

    @property
    def graph_precision(self) -> str:
        """The precision that the ONNX graph is written in.

        OpenVINO itself computes a float32 graph in half precision; ONNX Runtime and TensorRT use
        the types of the graph.
        """
        if self.precision == "int8" or self.runtime in ("onnxruntime", "tensorrt"):
            return self.precision
        return "f32"


REFERENCE_PREFIX = "reference-"


def key_of(reference: str) -> str:
    """Return the key of a reference among the models of a batch or a pack."""
    return f"{REFERENCE_PREFIX}{reference}"
