"""Finds the first part of a network where a deployed graph computes something else than torch."""

from dataclasses import dataclass

import numpy as np
import torch

from supernet.graph.style import GraphStyle, Precision, Ranges
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, letterbox

from .edge.runtimes import open_session

TOLERANCE = {"f32": 1e-3, "f16": 0.05, "bf16": 0.1, "int8": 0.3}
"""Largest norm of a part's difference over the norm of what torch computes."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where two graphs differ."""

    place: str
    """Latency entry, s1_0 for instance."""
    error: float
    """Norm of the difference over the norm of torch's result."""
    largest: float
    """Largest difference of a number."""


@torch.no_grad()
def first_divergence(
    network: Detector,
    image: Image,
    runtime: str,
    threads: int,
    *,
    written: Precision = "f32",
    executed: str = "f32",
    ranges: Ranges | None = None,
) -> Divergence | None:
    """Return the first part, in the order of execution, that differs by more than it may.

    The graph is written again with every part's result as an output, in precision `written`, and
    run in precision `executed`. The head is left out: its scores are compared elsewhere.
    """
    model = network.to_onnx(raw=True, expose=True, style=GraphStyle.of(runtime, written, ranges))
    names = [output.name for output in model.graph.output]
    pixels = letterbox(image, network.architecture.input_size)[0][None]
    with open_session(runtime, model.SerializeToString(), threads, executed) as session:
        theirs = dict(zip(names, session.run({"image": pixels}), strict=True))
    for name, exact in network.deployed().parts(torch.from_numpy(pixels)).items():
        place = name.rpartition(".")[0]
        if place == "head":
            continue
        ours = exact.numpy()
        difference = np.abs(theirs[name].reshape(ours.shape) - ours)
        error = float(np.linalg.norm(difference) / max(float(np.linalg.norm(ours)), 1e-12))
        if not error <= TOLERANCE[executed]:
            return Divergence(place, error, float(difference.max()))
    return None
