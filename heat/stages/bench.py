"""`heat bench`: bundles and other models side by side on this machine."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy.edge.card import waiting_of
from deploy.edge.detect import check_files, read_card, threads_of
from deploy.edge.executed import dominant
from deploy.side_by_side import Entrant, Lap, executed, race, ratio, throughput
from latency_tables.probe.machine import detect_cpu
from supernet.atomic import check_replaceable
from supernet.errors import UserError

from ..records import Result
from ..views.outputs import is_drawing
from ..views.tables import RaceRow, print_race


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
) -> Result:
    """Time models in turns, each in a process of its own; print a table, draw a figure.

    A bundle runs as its card says, an .onnx or .xml file in `runtime`, `precision` and `threads`,
    by default those of the first bundle; one that leaves the size of its images open is fed images
    of `input_hw`. The precision of a file is
    that in which most of its convolutions and products are executed; another than was asked for is
    refused.
    """
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: at least 1")
    if picture is not None:
        check_replaceable(picture, "--picture", is_drawing)
    bundles = [read_card(path) for path in models if path.is_dir()]
    usual = threads_of(bundles[0]) if bundles else 1
    found = [
        _entrant(path, runtime=runtime, precision=precision, threads=threads, usual=usual)
        for path in models
    ]
    named = zip(found, names_apart(models), strict=True)
    entrants = [replace(entrant, name=name, input_hw=input_hw) for entrant, name in named]
    if crowd and any(entrant.runtime == "tensorrt" for entrant in entrants):
        raise UserError("--throughput counts requests on the cores of a CPU: leave it for TensorRT")
    held = [
        entrant.precision if path.is_dir() else _executed(entrant, precision)
        for path, entrant in zip(models, entrants, strict=True)
    ]
    laps = race(entrants, rounds=rounds)
    machine = detect_cpu()
    rows = []
    for entrant, lap, own in zip(entrants, laps, held, strict=True):
        row = _row(replace(entrant, precision=own), lap, laps[0])
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
    path: Path,
    *,
    runtime: str | None,
    precision: str | None,
    threads: int | None,
    usual: int,
) -> Entrant:
    if path.is_dir():
        card = read_card(path)
        check_files(path, card)
        return Entrant(
            name=path.name,
            model=path / card["model"],
            runtime=card["runtime"],
            precision=card["precision"],
            threads=threads or threads_of(card),
            waiting=waiting_of(card),
        )
    own = {".onnx": runtime or "onnxruntime", ".xml": "openvino"}.get(path.suffix.lower())
    if own is None:
        raise UserError(f"{path} is neither a bundle nor an .onnx or .xml file")
    if not path.exists():
        raise UserError(f"no model at {path}")
    return Entrant(
        name=path.stem,
        model=path,
        runtime=own,
        precision=precision or "f32",
        threads=threads or usual,
    )


def _executed(entrant: Entrant, asked: str | None) -> str:
    """Return the precision in which a file is executed; refuse another than was asked for."""
    found = dominant(executed(entrant))
    unread = found == "unknown" and asked == "f32"  # nothing in it multiplies
    if asked is not None and found != asked and not unread:
        raise UserError(
            f"{entrant.name}: {entrant.runtime} executes {found}, not {asked}: leave out "
            "--precision, or give a model that holds it (heat export --precision makes one)"
        )
    return found


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Name models after their files; of the same name, after their folders too, or by number."""
    files = [path.absolute() for path in paths]
    names = {path: path.name if path.is_dir() else path.stem for path in files}
    for depth in range(1, max(len(path.parts) for path in files) + 1):
        taken = Counter(names.values())
        names = {
            path: "/".join(path.parts[-depth:]) if taken[name] > 1 else name
            for path, name in names.items()
        }
    return [
        f"{names[path]} ({files[: index + 1].count(path)})"
        if files.count(path) > 1
        else names[path]
        for index, path in enumerate(files)
    ]


def _row(entrant: Entrant, lap: Lap, first: Lap) -> RaceRow:
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
