"""Fills a latency table by measuring on this machine, batch by batch, and calibrates it."""

import datetime
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import torch

from deploy.runtimes import open_session, runtime_version
from supernet.architecture import WIDTH_STEP, Architecture, Entry
from supernet.detector import Detector
from supernet.errors import UserError
from supernet.progress import Progress

from .context import ProbeModel, build, randomise, terms
from .devices import Target
from .measure import ROUNDS, Job, Timing, time_jobs
from .table import Calibration, Conditions, LatencyTable, Row

BATCH = 24
"""Probe models loaded and interleaved together."""
NUM_ANCHORS = 4
"""Whole networks that set the calibration factor."""
NUM_HELD_OUT = 4
"""Whole networks that only check it."""


def conditions_of(target: Target, input_size: tuple[int, int]) -> Conditions:
    """Return the conditions under which this machine measures now."""
    return Conditions(
        device=target.name,
        model=target.detected.model,
        runtime=target.runtime,
        runtime_version=runtime_version(target.runtime),
        precision=target.device.precision,
        threads=target.threads,
        height=input_size[0],
        width=input_size[1],
    )


def open_table(folder: Path, target: Target, input_size: tuple[int, int]) -> LatencyTable:
    """Return the stored table of these conditions, or an empty one.

    Raises `TableError` where the stored one is broken or was measured under other conditions.
    """
    conditions = conditions_of(target, input_size)
    path = folder / f"{conditions.stem}.csv"
    if path.exists():
        table = LatencyTable.load(path)
        table.require(conditions)
        return table
    return empty_table(target, input_size)


def empty_table(target: Target, input_size: tuple[int, int]) -> LatencyTable:
    """Return a table without rows for this machine."""
    facts = {"detected": asdict(target.detected)}
    return LatencyTable(conditions_of(target, input_size), facts=facts)


def space_entries(template: Architecture, widths: Sequence[int], *, oa: bool) -> list[Entry]:
    """Return every entry a network of at most these widths can have (spec section 8.2).

    With the default widths 192, 192, 256, 384 these are the spec's 764 (728 without `oa`), and
    two more: preprocessing and decoding.
    """
    found: set[Entry] = set()
    choices = [range(WIDTH_STEP, limit + 1, WIDTH_STEP) for limit in widths]
    every_operator = ("RWS",) * 4
    blocks = ("cw", "oa") if oa else ("cw",)
    # Every entry depends on at most two widths, so all pairs are enough.
    for a, b in ((0, 1), (1, 2), (2, 3), (1, 3)):
        for wide_a, wide_b in product(choices[a], choices[b]):
            chosen = [WIDTH_STEP] * 4
            chosen[a], chosen[b] = wide_a, wide_b
            d1, d2, d3, d4 = chosen
            for block in blocks:
                network = template.with_(
                    widths=(d1, d2, d3, d4), blocks=every_operator, global_block=block
                )
                found.update(network.entries().values())
    return sorted(found)


def fill(
    table: LatencyTable,
    entries: Iterable[Entry],
    *,
    rounds: int = ROUNDS,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Measure the entries that the table lacks; `save` is called after every batch."""
    todo = sorted({entry for entry in entries if entry not in table.rows}, key=_locality)
    if not todo:
        return
    conditions = table.conditions
    started = time.monotonic()
    with Progress(f"profile {conditions.stem}", len(todo)) as bar:
        for batch in _batches(todo):
            probes = {probe for entry in batch for probe in terms(entry)}
            timings = _time(probes, conditions, rounds)
            for entry in batch:
                table.rows[entry] = _row(entry, timings)
                bar.advance(str(entry))
            spent = float(table.facts.get("seconds", 0.0)) + time.monotonic() - started
            started = time.monotonic()
            table.facts["seconds"] = round(spent, 1)
            save()


def _locality(entry: Entry) -> tuple[object, ...]:
    """Order entries so that neighbours share their caps."""
    return (entry.stride, entry.op, entry.d_out, entry.d_in, entry)


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    for start in range(0, len(entries), BATCH):
        yield list(entries[start : start + BATCH])


def _time(
    probes: Iterable[ProbeModel], conditions: Conditions, rounds: int
) -> Mapping[ProbeModel, Timing]:
    jobs = {}
    for probe in sorted(probes, key=repr):
        model, feeds = build(probe)
        jobs[probe] = Job(open_session(conditions.runtime, model, conditions.threads), feeds)
    timings = time_jobs(jobs, rounds=rounds)
    del jobs
    gc.collect()
    return timings


def _row(entry: Entry, timings: Mapping[ProbeModel, Timing]) -> Row:
    parts = terms(entry)
    return Row(
        ms=max(0.0, sum(sign * timings[probe].min_ms for probe, sign in parts.items())),
        median_ms=max(0.0, sum(sign * timings[probe].median_ms for probe, sign in parts.items())),
        spread=max(timings[probe].spread for probe in parts),
        n=min(timings[probe].n for probe in parts),
        date=datetime.date.today().isoformat(),
    )


def random_architecture(
    rng: np.random.Generator,
    template: Architecture,
    widths: Sequence[int],
    positions: Sequence[int],
) -> Architecture:
    """Draw a network of the space, uniform in widths, depths and operators."""
    chosen = [int(rng.integers(1, limit // WIDTH_STEP + 1)) * WIDTH_STEP for limit in widths]
    strings = [
        "".join(rng.choice(list("RWS"), int(rng.integers(1, count + 1)))) for count in positions
    ]
    return template.with_(
        name="random",
        widths=(chosen[0], chosen[1], chosen[2], chosen[3]),
        blocks=(strings[0], strings[1], strings[2], strings[3]),
    )


def network_job(architecture: Architecture, conditions: Conditions, *, seed: int = 0) -> Job:
    """Load a whole deployed network, from uint8 image to boxes, with random weights."""
    torch.manual_seed(seed)
    network = Detector(architecture)
    randomise(network)
    model = network.to_onnx().SerializeToString()
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (1, *architecture.input_size, 3), dtype=np.uint8)
    session = open_session(conditions.runtime, model, conditions.threads)
    return Job(session, {"image": image})


def measure_networks(
    networks: Sequence[Architecture], conditions: Conditions, *, rounds: int = ROUNDS
) -> list[Timing]:
    """Measure whole deployed networks, interleaved."""
    jobs = {
        index: network_job(architecture, conditions, seed=index)
        for index, architecture in enumerate(networks)
    }
    timings = time_jobs(jobs, rounds=rounds)
    return [timings[index] for index in range(len(networks))]


def calibrate(
    table: LatencyTable,
    template: Architecture,
    widths: Sequence[int],
    positions: Sequence[int],
    *,
    seed: int = 0,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Measure random networks: some set the table's factor, others its held-out error."""
    size = (table.conditions.height, table.conditions.width)
    if template.input_size != size:
        raise UserError(f"template of {template.input_size}, table of {size}")
    rng = np.random.default_rng(seed)
    networks = [
        random_architecture(rng, template, widths, positions)
        for _ in range(NUM_ANCHORS + NUM_HELD_OUT)
    ]
    needed = [entry for network in networks for entry in network.entries().values()]
    fill(table, needed, save=save)
    measured = [timing.median_ms for timing in measure_networks(networks, table.conditions)]
    sums = [table.sum_ms(network) for network in networks]
    pairs = list(zip(sums, measured, strict=True))
    anchors, held_out = pairs[:NUM_ANCHORS], pairs[NUM_ANCHORS:]
    factor = math.exp(float(np.mean([math.log(real / total) for total, real in anchors])))
    table.calibration = Calibration(
        factor, tuple(anchors), tuple((factor * total, real) for total, real in held_out)
    )
    save()
