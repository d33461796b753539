"""Stage 4: exported graphs through ONNX Runtime's CUDA provider and TensorRT, against torch.

A runtime that is not installed here is named. In a rehearsal ONNX Runtime's CPU provider stands in
for the GPU's runtimes.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from stage import Stage, median_ms

from deploy.edge.runtimes import open_session
from deploy.edge.session import Session, installed_runtimes
from latency_tables.models import random_network
from latency_tables.probe.batch import feeds_of
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import Architecture, preset

SCORE_BOUND = {"f32": 1e-3, "f16": 3e-2}
"""Largest difference of a score, against float32 in torch on the CPU."""


def network_of(stage: Stage) -> Architecture:
    """Return the network that is exported."""
    if stage.rehearse:
        return Architecture(
            widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1,
            input_size=(64, 96),
        )  # fmt: skip
    return preset("medium", input_size=(640, 640))


def main() -> None:
    """Run them all."""
    stage = Stage("onnx_cuda")
    network = random_network(network_of(stage))
    image = {"image": ((1, *network.architecture.input_size, 3), "uint8")}
    feeds = feeds_of(image)
    with torch.inference_mode():
        logits, deltas = network.deployed()(torch.from_numpy(feeds["image"]))
    scores = logits.sigmoid().numpy()
    installed = installed_runtimes()
    found: dict[str, object] = stage.result.get("runtimes", {})
    wanted = [
        (runtime, precision)
        for runtime in ("onnxruntime", "tensorrt")
        for precision in ("f16", "f32")
        if f"{runtime} {precision}" not in found
    ]
    for runtime, precision in stage.in_time(wanted, 0.1 if stage.rehearse else 4.0):
        what = f"{runtime} {precision}"
        executes = "onnxruntime" if stage.rehearse else runtime
        names = ("tensorrt", "tensorrt_rtx") if executes == "tensorrt" else (executes,)
        if not any(installed[name] for name in names):
            stage.failed(what, RuntimeError(f"{runtime} is not installed here: carry its wheel"))
            continue
        try:
            style = GraphStyle.of(executes, precision)
            model = network.to_onnx(raw=True, style=style)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(model.SerializeToString())
                device = "cpu" if stage.rehearse else "cuda"
                with open_session(executes, path, 1, precision, device) as session:
                    found[what] = {
                        "executed_by": f"{executes} on {device}",
                        **checked(stage, session, feeds, scores, deltas.numpy(), precision),
                    }
            stage.leave(runtimes=found)
        except Exception as error:
            stage.failed(what, error)
    stage.leave(network=network.architecture.name, input_size=network.architecture.input_size)


def checked(
    stage: Stage,
    session: Session,
    feeds: dict[str, np.ndarray],
    scores: np.ndarray,
    deltas: np.ndarray,
    precision: str,
) -> dict[str, object]:
    """Return parity and time of a session."""
    outputs = session.run(feeds)
    worst = float(np.abs(outputs[0].astype(np.float32).reshape(-1) - scores.reshape(-1)).max())
    boxes = float(np.abs(outputs[1].astype(np.float32).reshape(-1) - deltas.reshape(-1)).max())
    times = [session.timed(feeds) for _ in range(3 if stage.rehearse else 100)]
    return {
        "worst_score": round(worst, 6),
        "worst_delta": round(boxes, 6),
        "agrees": worst <= SCORE_BOUND[precision],
        "ms": median_ms(times),
        "executed": session.executed(feeds) if hasattr(session, "executed") else None,
    }


if __name__ == "__main__":
    main()
