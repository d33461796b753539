"""`heat bench`: bundles and other models side by side on this machine."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.edge.detect import read_card
from deploy.side_by_side import Entrant, Lap, race, ratio, throughput
from latency_tables.probe.machine import detect_cpu
from supernet.atomic import check_replaceable
from supernet.errors import UserError

from ..views.outputs import is_drawing
from ..views.tables import print_race


def bench(
    models: Sequence[Path],
    *,
    runtime: str | None,
    precision: str | None,
    threads: int | None,
    rounds: int,
    crowd: bool,
    picture: Path | None,
    input_hw: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Time models in turns, each in a process of its own; print a table, draw a figure.

    A bundle runs as its card says, an .onnx or .xml file in `runtime`, `precision`, `threads`; one
    that leaves the size of its images open is fed images of `input_hw`.
    """
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: at least 1")
    if picture is not None:
        check_replaceable(picture, "--picture", is_drawing)
    found = [
        _entrant(path, runtime=runtime, precision=precision, threads=threads) for path in models
    ]
    entrants = _named_apart([replace(entrant, input_hw=input_hw) for entrant in found])
    if crowd and any(entrant.runtime == "tensorrt" for entrant in entrants):
        raise UserError("--throughput counts requests on the cores of a CPU: leave it for TensorRT")
    laps = race(entrants, rounds=rounds)
    machine = detect_cpu()
    rows = []
    for entrant, lap in zip(entrants, laps, strict=True):
        row = _row(entrant, lap, laps[0])
        if crowd:
            row["throughput_fps"] = round(throughput(entrant, machine.cores), 2)
            row["streams"] = machine.cores
        rows.append(row)
    print_race(rows)
    if picture is not None:
        from ..views.charts import draw_race

        draw_race(laps, f"{machine.model}, batch 1", picture)
        print(f"drawn in {picture}", file=sys.stderr)
    return {"models": rows, "machine": machine.model, "rounds": rounds}


def _entrant(
    path: Path, *, runtime: str | None, precision: str | None, threads: int | None
) -> Entrant:
    if path.is_dir():
        card = read_card(path)
        return Entrant(
            name=path.name,
            model=path / card["model"],
            runtime=card["runtime"],
            precision=card["precision"],
            threads=threads or int(card["threads"]),
        )
    own = {".onnx": runtime or "onnxruntime", ".xml": "openvino"}.get(path.suffix)
    if own is None:
        raise UserError(f"{path} is neither a bundle nor an .onnx or .xml file")
    if not path.exists():
        raise UserError(f"no model at {path}")
    return Entrant(
        name=path.stem, model=path, runtime=own, precision=precision or "f32", threads=threads or 1
    )


def _named_apart(entrants: list[Entrant]) -> list[Entrant]:
    """Give models of the same name the names of their folders too."""
    names = [entrant.name for entrant in entrants]
    return [
        replace(e, name=f"{e.model.parent.parent.name}/{e.name}") if names.count(e.name) > 1 else e
        for e in entrants
    ]


def _row(entrant: Entrant, lap: Lap, first: Lap) -> dict[str, Any]:
    return {
        "model": lap.name,
        "runtime": entrant.runtime,
        "precision": entrant.precision,
        "threads": entrant.threads,
        "p50_ms": round(lap.p50_ms, 3),
        "p95_ms": round(lap.p95_ms, 3),
        "p99_ms": round(lap.p99_ms, 3),
        "fps": round(lap.fps, 2),
        "times_first": round(ratio(lap, first), 4),
        "peak_mb": round(lap.peak_mb, 1),
        "start_ms": round(lap.start_ms, 1),
        "runs": lap.runs,
        "inputs": lap.inputs,
    }
