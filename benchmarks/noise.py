"""Are promised frame rates kept on a disturbed machine? Tables and thinning, simulated.

    python benchmarks/noise.py --seeds 50 --write
    python benchmarks/noise.py --seeds 50 --work FOLDER --levels shared    # resumable, in parts

A simulated device (`simulated.py`) has known true times, disturbed at three levels as observed on
shared machines: jitter, spikes, state changes of up to +-50 % that last seconds to minutes and slow
each family of operators differently, throttling, and true steps at some widths. Every seed is
another device. Each is profiled and thinned for four targets by this version and by the method of
0.1.0 (`noise_baseline.py`). Reported for each: |predicted / true - 1| of 20 random networks,
simulated seconds of measuring the table, targets reported out of reach that the smallest network
keeps (`false_infeasible`), and the share of targets whose network truly runs within [1, 1.05] of
the target, in the states that the promise covers. With --work every device's results are kept in
FOLDER, which several processes may share; a run continues from them. The last line is one JSON
object.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from noise_baseline import old_chain, old_settle, old_table
from result import RESULTS, tell
from simulated import LEVELS, REFERENCE_MS, Machine, Noise, SimulatedMeter

from heat.spaces import search_space
from heat.thinning.agreement import WAIT_S, measured_latency, until_agreed
from heat.thinning.aims import aims
from heat.thinning.limits import Cost, Limits, Pricer, cost_of
from heat.thinning.measuring import MAX_PROCESSES, PROCESSES
from heat.thinning.moves import State, ThinningRules, prior_logits, removed_mass
from heat.thinning.search import Chain
from heat.thinning.settle import OVERSHOOT, Goal, settle
from latency_tables import profile
from latency_tables.calibration import INTERVAL_90
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.pricing import SUSTAINED, Latency, Pricing, weighted_quantile
from latency_tables.samples import NetworkSample
from latency_tables.store import SHIPPED
from latency_tables.table import LatencyTable
from latency_tables.table_file import read_table
from supernet.atomic import write_text
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

NETWORKS = 20
TARGETS = 4
RULES = ThinningRules(stage_rule="all")
MODEL = "amd-epyc-onnxruntime-f32-t1-448x448.csv"


def smallest(space: SearchSpace) -> Architecture:
    """Return the smallest network of a space."""
    return space.template.with_(widths=(32,) * 4, blocks=("R",) * 4)


def true_ms(machine: Machine, network: Architecture, slow: float) -> float:
    """Return the true milliseconds in a state, given by the log slowness of the reference."""
    share = machine.share(machine.network_name(network))
    return machine.network_ms(network) * math.exp(share * slow)


def targets_of(machine: Machine, space: SearchSpace) -> list[float]:
    """Return frame rates from just above the full network's to just below the smallest one's."""
    full = State.full(space).architecture(space, prior_logits(space))
    slowest = 1000.0 / machine.network_ms(full)
    fastest = 1000.0 / machine.network_ms(smallest(space))
    return list(np.geomspace(1.3 * slowest, 0.75 * fastest, TARGETS))


def new_method(
    machine: Machine, space: SearchSpace, networks: list[Architecture], rates: list[float]
) -> dict[str, Any]:
    """Profile and thin by this version."""
    logits = prior_logits(space)
    meter = SimulatedMeter(machine)
    table = LatencyTable(read_table(SHIPPED / MODEL).conditions)
    checks = Checks(memory=0)
    clock = profile.time
    profile.time = SimulatedTime(machine)  # type: ignore[assignment]
    try:
        entries = space_entries(space.template, space.widths, oa=False)
        profile.fill(table, entries, meter, aims(space, logits), checks=checks)
        checked = check_networks(space.template, space.widths, space.positions, checks.networks)
        profile.calibrate(table, checked, meter, checks=checks)
    finally:
        profile.time = clock
    seconds = machine.clock_s
    assert table.model is not None
    slow = math.log(table.base[0] / REFERENCE_MS["network"])
    errors, covered = [], []
    for network in networks:
        found = table.model.predict(table.model.counts(network.entries()))
        errors.append(abs(found.ms / true_ms(machine, network, slow) - 1))
        covered.append(errors[-1] <= INTERVAL_90 * found.sd)
    history = np.log([m.state[0] / REFERENCE_MS["network"] for m in table.history])
    weights = np.array([m.seconds for m in table.history])

    def sustained_fps(network: Architecture) -> float:
        slowness = np.exp(machine.share(machine.network_name(network)) * history)
        slow = weighted_quantile(slowness, weights, SUSTAINED)
        return 1000.0 / (machine.network_ms(network) * slow)

    met = infeasible = reachable = 0
    ratios = []
    for rate in rates:
        state, out_of_reach = thin(table.copy(), machine, meter, space, rate)
        if sustained_fps(smallest(space)) < rate:
            continue
        reachable += 1
        infeasible += out_of_reach
        ratios.append(sustained_fps(state.architecture(space, logits)) / rate)
        met += 1.0 <= ratios[-1] <= OVERSHOOT
    return outcome(errors, seconds, infeasible, met, reachable, ratios) | {
        "covered": float(statistics.mean(covered))
    }


def thin(
    table: LatencyTable, machine: Machine, meter: SimulatedMeter, space: SearchSpace, rate: float
) -> tuple[State, bool]:
    """Thin as `heat thin` does; return the state, and whether it is reported out of reach."""
    logits = prior_logits(space)
    prices = Pricer(table, space, logits, lambda network: None)

    def measure(state: State) -> Cost:
        network = state.architecture(space, logits)
        pricing = Pricing(table)

        def latency_of(samples: Sequence[NetworkSample]) -> Latency:
            return measured_latency(pricing, network, samples)

        def wait() -> None:
            machine.clock_s += WAIT_S

        samples = until_agreed(
            lambda: meter.network(network).networks[0],
            latency_of,
            needed=PROCESSES,
            most=MAX_PROCESSES,
            enough=lambda latency: False,
            wait=wait,
        )
        table.add(networks=samples)
        table.refit()
        found = measured_latency(Pricing(table), network, samples)
        return cost_of(found, math.nan, math.nan, 1.0)

    def drop(before: State, after: State) -> float:
        return removed_mass(before, after, logits)

    chain = Chain(space, logits, RULES, prices.table_ms, drop)
    found = settle(chain, [Goal(prices, Limits(target_fps=rate), measure)])
    return found.state, found.at_floor


def old_method(
    machine: Machine, space: SearchSpace, networks: list[Architecture], rates: list[float]
) -> dict[str, Any]:
    """Profile and thin by the method of 0.1.0."""
    logits = prior_logits(space)
    meter = SimulatedMeter(machine)
    checked = check_networks(space.template, space.widths, space.positions, 15)
    entries = space_entries(space.template, space.widths, oa=False)
    table = old_table(meter, entries, checked)
    seconds = machine.clock_s
    slow = math.log(table.reference_ms / REFERENCE_MS["network"])
    errors = [abs(table.ms(n) / true_ms(machine, n, slow) - 1) for n in networks]
    chain = old_chain(space, logits, RULES, table)
    met = infeasible = reachable = 0
    ratios = []
    for rate in rates:
        network, out_of_reach = old_settle(chain, table, meter, rate)
        if 1000.0 / true_ms(machine, smallest(space), slow) < rate:
            continue
        reachable += 1
        infeasible += out_of_reach
        if network is not None:
            ratios.append(1000.0 / true_ms(machine, network, slow) / rate)
            met += 1.0 <= ratios[-1] <= OVERSHOOT
    return outcome(errors, seconds, infeasible, met, reachable, ratios)


def outcome(
    errors: list[float], seconds: float, infeasible: int, met: int, reachable: int, ratios: Any
) -> dict[str, Any]:
    """Return the results of one device."""
    return {
        "errors": [float(error) for error in errors],
        "seconds": float(seconds),
        "false_infeasible": int(infeasible),
        "met": int(met),
        "reachable": reachable,
        "ratios": [round(float(ratio), 4) for ratio in ratios],
    }


class SimulatedTime:
    """Replaces the `time` module by the simulated machine's clock."""

    def __init__(self, machine: Machine) -> None:
        """Use the machine's clock."""
        self._machine = machine

    def monotonic(self) -> float:
        """Return simulated seconds."""
        return self._machine.clock_s


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise all seeds of a level and method."""
    errors = [error for row in rows for error in row["errors"]]
    ratios = [ratio for row in rows for ratio in row["ratios"]]
    reachable = sum(row["reachable"] for row in rows)
    found = {
        "false_infeasible": sum(row["false_infeasible"] for row in rows),
        "targets": reachable,
        "median_error": round(statistics.median(errors), 4),
        "p95_error": round(float(np.quantile(errors, 0.95)), 4),
        "seconds": round(statistics.median(row["seconds"] for row in rows), 1),
        "met": round(sum(row["met"] for row in rows) / max(1, reachable), 4),
        "ratio_p5_p95": [round(float(q), 4) for q in np.quantile(ratios, [0.05, 0.95])],
    }
    if "covered" in rows[0]:
        found["covered"] = round(statistics.mean(row["covered"] for row in rows), 4)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--levels", default=",".join(level.name for level in LEVELS))
    parser.add_argument("--space", default="large")
    parser.add_argument("--work", type=Path, help="folder of finished devices, to go on from")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS / "noise.json")
    options = parser.parse_args()
    shipped = read_table(SHIPPED / MODEL)
    space = search_space(options.space, input_size=shipped.conditions.input_size, num_classes=80)
    networks = check_networks(space.template, space.widths, space.positions, NETWORKS, seed=20)
    known = {level.name: level for level in LEVELS}
    levels: list[Noise] = [known[name] for name in options.levels.split(",")]
    result: dict[str, Any] = {"seeds": options.seeds, "networks": NETWORKS, "simulated": True}
    started = time.monotonic()
    for level in levels:
        rows: dict[str, list[dict[str, Any]]] = {"new": [], "old": []}
        for seed in range(options.seeds):
            for name, method in (("new", new_method), ("old", old_method)):
                kept = options.work / f"{level.name}-{name}-{seed}.json" if options.work else None
                if kept is not None and kept.exists():
                    rows[name].append(json.loads(kept.read_text(encoding="utf-8")))
                    continue
                machine = Machine.of(shipped, level, seed)
                row = method(machine, space, networks, targets_of(machine, space))
                rows[name].append(row)
                if kept is not None:
                    write_text(kept, json.dumps(row) + "\n")
            spent = time.monotonic() - started
            print(f"{level.name} seed {seed}: {spent:.0f} s", file=sys.stderr, flush=True)
        result[level.name] = {name: summary(found) for name, found in rows.items()}
        print(json.dumps(result[level.name]), file=sys.stderr, flush=True)
    tell(result, options.write)


if __name__ == "__main__":
    main()
