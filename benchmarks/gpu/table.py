"""Stage 3: a latency table of the card by torch with CUDA graphs, and whether it is true.

For each precision: the table, its error on 20 random networks that it was not calibrated with, and,
in the first precision, a closed loop on three targets.
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
from supernet.heatdetr.architecture import WIDTH_STEP
from supernet.heatdetr.supernet import SearchSpace

PRECISIONS = ("f16", "bf16", "f32")
PLACES = (0.3, 0.5, 0.7)
"""Targets of the closed loop, between the frame rates of the largest and the smallest network."""
WATCH_S = 2.0
"""Seconds that the machine is watched for before each thinning; `heat thin` takes eight, and 40
where its state is none that the table has seen."""


def main() -> None:
    """Measure and check the tables."""
    stage = Stage("table")
    if stage.rehearse:
        os.environ["HEAT_PROCESSES"] = "1"
        plan.FIRST_OF_A_FAMILY = 1
        batch.NETWORK_ROUNDS = batch.NETWORK_MIN_ROUNDS = 3
    size = (64, 96) if stage.rehearse else (640, 640)
    name = "micro" if stage.rehearse else "large"
    space = search_space(name, input_size=size, num_classes=80)
    found: dict[str, object] = {}
    precisions = ("f32",) if stage.rehearse else PRECISIONS  # CPUs are slow in the others
    for index, precision in enumerate(stage.in_time(precisions, 2 if stage.rehearse else 20)):
        budget_s = 1.0 if stage.rehearse else stage.left_s * (0.45 if index == 0 else 0.35)
        target = resolve(
            "cpu" if stage.rehearse else "cuda", runtime="torch", threads=1, precision=precision
        )
        try:
            table = measured(stage, target, space, budget_s)
            found[precision] = {
                "entries": len(table.rows),
                "timed": table.sampled,
                "held_out_error": table.calibration.held_out_error,
                "reference_ms": table.reference_ms,
                "conditions": asdict(table.conditions),
            }
            stage.leave(tables=found)
            found[precision] |= {"sum": sum_errors(stage, table, space)}
            stage.leave(tables=found)
            if index == 0:
                stage.leave(loop=closed_loop(stage, target, table, space))
        except Exception as error:
            stage.failed(precision, error)
            if index == 0 and not stage.rehearse:
                raise


def measured(stage: Stage, target: Target, space: SearchSpace, budget_s: float) -> LatencyTable:
    """Return a table that was measured in so many seconds, as `heat profile` does."""
    table = open_table(stage.out, target, space.template.input_size)
    meter = DeviceMeter(table.conditions)
    entries = space_entries(space.template, space.widths, oa=True)
    checks = Checks(networks=2 if stage.rehearse else 8, memory=0, budget_s=budget_s)
    fill(table, entries, meter, aims(space, prior_logits(space)), checks=checks)
    whole = check_networks(space.template, space.widths, space.positions, checks.networks)
    calibrate(table, whole, meter, checks=checks)
    write_table(table, stage.out)
    return table


def sum_errors(stage: Stage, table: LatencyTable, space: SearchSpace) -> dict[str, object]:
    """Return the table's error on random networks, each measured once more at the end."""
    networks = draw_networks(space, 3 if stage.rehearse else 20, seed=0)
    meter, pricing = DeviceMeter(table.conditions, check=False), Pricing(table)
    errors, covered = [], []
    for index in stage.in_time(range(len(networks)), 1.0):
        network = networks[index]
        sample = meter.network(network, seed=index).networks[0]
        at_base = sample.ms / pricing.slowdown(network, sample.state)
        error = table.predict_ms(network) / at_base - 1
        errors.append(error)
        covered.append(abs(error) <= INTERVAL_90 * pricing.latency(network).sd)
    if not errors:
        return {"networks": 0}
    absolute = [abs(error) for error in errors]
    return {
        "networks": len(errors),
        "median_error": round(statistics.median(absolute), 4),
        "p95_error": round(float(np.quantile(absolute, 0.95)), 4),
        "bias": round(statistics.median(errors), 4),
        "covered": round(statistics.fmean(covered), 3),
    }


def closed_loop(
    stage: Stage, target: Target, table: LatencyTable, space: SearchSpace
) -> list[dict[str, object]]:
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
    rows: list[dict[str, object]] = []
    places = (-1.0,) if stage.rehearse else PLACES  # a rehearsal's table is too rough to aim by
    for place in stage.in_time(places, 1 if stage.rehearse else 8):
        fps = round(slow * (fast / slow) ** place, 1)
        started = time.monotonic()
        workspace = Workspace(stage.out / f"thin-{fps:g}")
        write_table(table, workspace.tables)
        row: dict[str, object] = {"target": fps}
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
        except Exception as error:
            row["missed"] = str(error)[:300]
        row["seconds"] = round(time.monotonic() - started, 1)
        rows.append(row)
        stage.leave(loop=rows)
    return rows


if __name__ == "__main__":
    main()
