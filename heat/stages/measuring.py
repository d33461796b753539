"""Measures deployed networks on this machine, at the speed that its latency table is for."""

import math
import os
from pathlib import Path

from deploy.bench import Speed
from latency_tables.batch import Bench, Model, NetworkResult, Setting
from latency_tables.costs import size_mb
from latency_tables.drift import scale_to
from latency_tables.fresh import peak_mb, time_network
from latency_tables.models import write_network
from latency_tables.networks import reference_architecture
from latency_tables.profile import FRESH_COMMAND
from supernet.architecture import Architecture
from supernet.errors import UserError

from ..limits import Cost

PROCESSES = 3
"""Processes that must agree on a measurement; HEAT_PROCESSES overrides it, 1 is quick and rough."""
MAX_PROCESSES = 7
AGREE = 0.015
"""Share by which they may differ."""


def measure_network(
    architecture: Architecture,
    setting: Setting,
    *,
    reference_ms: float = 0.0,
    memory: bool = True,
) -> Cost:
    """Measure a network with random weights and a busy head; memory too, if asked.

    `reference_ms` is the table's time of the reference network; 0 where there is no table.
    """
    model = write_network(architecture, setting)
    speed = measure_model(model, setting, architecture.input_size, reference_ms)
    tail_ms = speed.ms * speed.p95_ms / speed.p50_ms
    size = len(model.onnx) / 2**20 if model.onnx else size_mb(architecture)
    peak = math.nan
    if memory and model.onnx:  # torch deploys no file
        peak = peak_mb(model, setting, FRESH_COMMAND)
    return Cost(speed.fps, size, peak, speed.ms, tail_ms, 1000.0 / speed.p50_ms)


def measure_bundle(
    model: Path, setting: Setting, input_size: tuple[int, int], reference_ms: float
) -> Speed:
    """Measure an exported model file."""
    image = {"image": ((1, *input_size, 3), "uint8")}
    return measure_model(Model(b"", image, file=model), setting, input_size, reference_ms)


def measure_model(
    model: Model, setting: Setting, input_size: tuple[int, int], reference_ms: float
) -> Speed:
    """Time a model in processes of its own, in turns with the reference network.

    Where a process lays its memory makes a network some percent faster or slower, and not every
    network follows the clock as the reference does. So of several processes those count in which
    the reference ran most as in the table; they are repeated until three agree, and the middle one
    is the result.
    """
    needed = processes()
    most = MAX_PROCESSES if needed > 1 else 1
    reference = write_network(reference_architecture(input_size), setting)
    results: list[NetworkResult] = []
    speeds: list[Speed] = []
    while len(results) < most:
        if model.module is not None:  # torch's networks live in this process
            results.append(Bench(setting, reference).network(model))
        else:
            results.append(time_network(model, reference, setting, FRESH_COMMAND))
        if len(results) >= needed:
            wanted_ms = reference_ms or results[0].reference_ms
            results.sort(key=lambda result: abs(math.log(result.reference_ms / wanted_ms)))
            speeds = sorted(
                (_speed(result, reference_ms) for result in results[:needed]),
                key=lambda speed: speed.ms,
            )
            if speeds[-1].ms <= speeds[0].ms * (1 + AGREE):
                break
    return speeds[needed // 2]


def processes() -> int:
    """Return how many processes must agree on a measurement."""
    asked = os.environ.get("HEAT_PROCESSES", str(PROCESSES))
    if not asked.isdigit() or not 1 <= int(asked) <= MAX_PROCESSES:
        raise UserError(f"HEAT_PROCESSES={asked}: a whole number from 1 to {MAX_PROCESSES}")
    return int(asked)


def _speed(result: NetworkResult, reference_ms: float) -> Speed:
    now = scale_to(reference_ms, result.reference_ms)
    return Speed(result.ms * now, result.ms, result.p95_ms)
