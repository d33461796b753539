"""Stage 3: a latency table of the card by torch with CUDA graphs, and whether it is true.

For each precision: the table, and its error on random networks that it was not calibrated with.
Then, in the first precision that has a table, a closed loop on three targets.
"""

import os
import statistics
import time
from dataclasses import asdict

import numpy as np
from latency_sum import draw_networks
from stage import Stage

from heat.spaces import search_space
from heat.thinning.aims import aims
from heat.thinning.moves import prior_logits
from latency_tables import plan
from latency_tables.calibration import INTERVAL_90
from latency_tables.devices import Target, resolve
from latency_tables.meter import DeviceMeter
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.pricing import Pricing
from latency_tables.probe import batch
from latency_tables.profile import calibrate, fill
from latency_tables.store import open_table
from latency_tables.table import LatencyTable
from latency_tables.table_file import write_table
from supernet.errors import PromiseError
from supernet.heatdetr.architecture import WIDTH_STEP
from supernet.heatdetr.supernet import SearchSpace

PRECISIONS = ("f16", "bf16", "f32")
PLACES = (0.3, 0.5, 0.7)
"""Targets of the closed loop, between the frame rates of the largest and the smallest network."""
LOOP_SHARE = 0.35
"""Of the stage's time, for the closed loop; each precision has half of the rest, the last all."""
ENTRIES_SHARE = 0.4
"""Of a precision's time, for entries; then come eight whole networks, and the random ones."""
NETWORK_S = 2.0
"""Estimate of the seconds in which a network is timed."""
LOOP_S = 20.0
"""Estimate of the seconds in which a network is thinned for a target and measured."""
WATCH_S = 2.0
"""Seconds that the machine is watched for before each thinning; `heat thin` takes eight, and 40
where its state is none that the table has seen."""


def main() -> None:
    """Measure and check the tables, then thin by the first of them."""
    stage = Stage("table")
    os.environ["HEAT_PROCESSES"] = "1"
    if stage.rehearse:
        plan.FIRST_OF_A_FAMILY = 1
        batch.NETWORK_ROUNDS = batch.NETWORK_MIN_ROUNDS = 3
    size = (64, 96) if stage.rehearse else (640, 640)
    name = "micro" if stage.rehearse else "large"
    space = search_space(name, input_size=size, num_classes=80)
    device = "cpu" if stage.rehearse else "cuda"
    precisions = ("f32",) if stage.rehearse else PRECISIONS  # CPUs are slow in the others
    found: dict[str, dict[str, object]] = stage.result.get("tables", {})
    todo = [precision for precision in precisions if "sum" not in found.get(precision, {})]
    loop_s = stage.left_s * LOOP_SHARE
    for precision in stage.in_time(todo, 2 if stage.rehearse else 20):
        last = precision == todo[-1]
        share_s = (stage.left_s - loop_s) * (1.0 if last else 0.5)
        try:
            target = resolve(device, runtime="torch", threads=1, precision=precision)
            one_table(stage, target, space, found, stage.left_s - share_s)
        except Exception as error:
            stage.failed(precision, error)
    first = next((precision for precision in precisions if precision in found), None)
    if first is None:
        raise SystemExit("no table was measured")
    target = resolve(device, runtime="torch", threads=1, precision=first)
    closed_loop(stage, target, open_table(stage.out, target, size), space)


def one_table(
    stage: Stage,
    target: Target,
    space: SearchSpace,
    found: dict[str, dict[str, object]],
    keep_s: float,
) -> None:
    """Measure and check a table, and leave so many seconds to what comes after it."""
    table = open_table(stage.out, target, space.template.input_size)
    if target.precision not in found:
        measure(stage, table, space, (stage.left_s - keep_s) * ENTRIES_SHARE)
        found[target.precision] = {
            "entries": len(table.rows),
            "timed": table.sampled,
            "held_out_error": table.calibration.held_out_error,
            "reference_ms": table.reference_ms,
            "conditions": asdict(table.conditions),
        }
        stage.leave(tables=found)
    found[target.precision]["sum"] = sum_errors(stage, table, space, keep_s)
    stage.leave(tables=found)


def measure(stage: Stage, table: LatencyTable, space: SearchSpace, budget_s: float) -> None:
    """Measure a table, its entries in so many seconds, as `heat profile` does."""

    def save() -> object:
        return write_table(table, stage.out)

    meter = DeviceMeter(table.conditions)
    entries = space_entries(space.template, space.widths, oa=True)
    checks = Checks(
        networks=2 if stage.rehearse else 8,
        memory=0,
        budget_s=1.0 if stage.rehearse else budget_s,
    )
    fill(table, entries, meter, aims(space, prior_logits(space)), checks=checks, save=save)
    known = {sample.architecture for sample in table.networks}
    whole = check_networks(space.template, space.widths, space.positions, checks.networks)
    calibrate(table, [n for n in whole if n not in known], meter, checks=checks, save=save)


def sum_errors(
    stage: Stage, table: LatencyTable, space: SearchSpace, keep_s: float
) -> dict[str, object]:
    """Return the table's error on random networks, as many as there is time for, 20 at most."""
    networks = draw_networks(space, 3 if stage.rehearse else 20, seed=0)
    meter, pricing = DeviceMeter(table.conditions, check=False), Pricing(table)
    errors, covered = [], []
    for index, network in enumerate(networks):
        if errors and stage.left_s - keep_s < NETWORK_S:
            break
        sample = meter.network(network, seed=index).networks[0]
        at_base = sample.ms / pricing.slowdown(network, sample.state)
        error = table.predict_ms(network) / at_base - 1
        errors.append(error)
        covered.append(abs(error) <= INTERVAL_90 * pricing.latency(network).sd)
    absolute = [abs(error) for error in errors]
    return {
        "networks": len(errors),
        "median_error": round(statistics.median(absolute), 4),
        "p95_error": round(float(np.quantile(absolute, 0.95)), 4),
        "bias": round(statistics.median(errors), 4),
        "covered": round(statistics.fmean(covered), 3),
    }


def closed_loop(stage: Stage, target: Target, table: LatencyTable, space: SearchSpace) -> None:
    """Thin for three targets, and compare what was measured with each."""
    from heat.stages.thin import thin
    from heat.thinning import filling
    from heat.thinning.candidates import Candidate
    from heat.thinning.limits import Limits
    from heat.workspace import Workspace

    filling.WATCH_S = filling.REWATCH_S = 0.1 if stage.rehearse else WATCH_S
    smallest = space.template.with_(widths=(WIDTH_STEP,) * 4, blocks=("R",) * 4)
    slow, fast = (1000.0 / table.predict_ms(network) for network in (space.template, smallest))
    stage.leave(largest_fps=round(slow, 2), smallest_fps=round(fast, 2))
    rows: list[dict[str, object]] = stage.result.get("loop", [])
    places = (-1.0,) if stage.rehearse else PLACES  # a rehearsal's table is too rough to aim by
    known = {row["place"] for row in rows}
    todo = [place for place in places if place not in known]
    for place in stage.in_time(todo, 1 if stage.rehearse else LOOP_S):
        fps = round(slow * (fast / slow) ** place, 1)
        started = time.monotonic()
        workspace = Workspace(stage.out / f"thin-{fps:g}")
        write_table(table, workspace.tables)
        row: dict[str, object] = {"precision": target.precision, "place": place, "target": fps}
        try:
            candidate = Candidate(space=space, targets=(target,), limits=(Limits(target_fps=fps),))
            result = thin(workspace, [candidate])
            row |= {
                "measured": result["measured_fps"],
                "ratio": round(float(str(result["measured_fps"])) / fps, 4),
                "measurements": result["measurements"],
                "widths": result["widths"],
                "blocks": result["blocks"],
            }
        except PromiseError as error:
            row["missed"] = str(error)[:300]
        except Exception as error:
            stage.failed(f"target {fps:g}", error)
            continue
        row["seconds"] = round(time.monotonic() - started, 1)
        rows.append(row)
        stage.leave(loop=rows)


if __name__ == "__main__":
    main()
