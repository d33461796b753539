"""Error of latency tables: predicts random networks, then measures each of them.

    python benchmarks/latency_sum.py --runtime openvino --precision bf16 --input-size 320x512 \
        --samples 20 --seed 0 --name openvino-bf16-320x512

The networks are drawn from the whole `large` space and are none of those that calibrate the table.
Each is measured in three fresh processes, minutes apart, interleaved with the references; medians
count. The clock of a shared machine drifts by ten percent and more: measured times are converted to
the table's base state (`error`). The lowest time, not converted, is compared too (`error_raw`).
`covered` is the share of networks whose error lies in the 90 % interval that the table states.
Without --tables the table is measured as `heat profile` does. With --disturb another process burns
a core in bursts the whole time. With --name, table, figure and result are written to
benchmarks/results/latency-sum/. The last line is one JSON object.
"""

import argparse
import csv
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from disturber import beside
from figures import draw_residuals
from result import tell

from heat.spaces import search_space
from heat.stages.profile import disturbances
from heat.thinning.aims import aims
from heat.thinning.moves import prior_logits
from latency_tables.calibration import INTERVAL_90
from latency_tables.devices import resolve
from latency_tables.meter import DeviceMeter
from latency_tables.networks import random_architecture
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.pricing import Pricing
from latency_tables.profile import calibrate, fill
from latency_tables.samples import NetworkSample
from latency_tables.store import open_table
from latency_tables.table_file import write_table
from supernet.counting import count_macs
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.supernet import SearchSpace
from supernet.progress import Progress

RESULTS = Path(__file__).parent / "results" / "latency-sum"
PASSES = 3
"""Fresh processes in which each network is measured, all networks in turn."""


def draw_networks(space: SearchSpace, samples: int, seed: int) -> list[Architecture]:
    """Draw random networks that no table is calibrated with."""
    known = check_networks(space.template, space.widths, space.positions, Checks().networks)
    rng = np.random.default_rng([seed, 20])
    found: list[Architecture] = []
    while len(found) < samples:
        network = random_architecture(rng, space.template, space.widths, space.positions)
        if network not in known and network not in found:
            found.append(network)
    return found


def kendall_tau(a: list[float], b: list[float]) -> float:
    """Return Kendall's tau-a: concordant minus discordant pairs, as a share of all."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs]
    return float(np.mean(signs)) if signs else 1.0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--input-size", default="448x448")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--name")
    options = parser.parse_args()
    target = resolve(
        options.device,
        runtime=options.runtime,
        threads=options.threads,
        precision=options.precision,
    )
    size = parse_size(options.input_size)
    space = search_space("large", input_size=size, num_classes=80)
    networks = draw_networks(space, options.samples, options.seed)
    with tempfile.TemporaryDirectory() as scratch, beside(options.disturb):
        folder = options.tables or Path(scratch)
        table = open_table(folder, target, size)
        meter = DeviceMeter(table.conditions)
        started = time.monotonic()
        if not table.calibration.checks:
            entries = space_entries(space.template, space.widths, oa=True)
            fill(table, entries, meter, aims(space, prior_logits(space)))
            checks = Checks()
            whole = check_networks(space.template, space.widths, space.positions, checks.networks)
            calibrate(table, whole, meter, checks=checks)
        table_seconds = time.monotonic() - started
        write_table(table, folder)
        pricing = Pricing(table)
        measured: list[NetworkSample] = []
        with Progress("random networks", PASSES * len(networks)) as bar:
            for _ in range(PASSES):
                for index, network in enumerate(networks):
                    measured.extend(meter.network(network, seed=index).networks)
                    bar.advance(f"{measured[-1].ms:.2f} ms")
    rows: list[dict[str, Any]] = []
    for index, network in enumerate(networks):
        timed = measured[index :: len(networks)]
        predicted = table.predict_ms(network)
        ms = min(sample.ms for sample in timed)
        at_base = statistics.median(
            sample.ms / pricing.slowdown(network, sample.state) for sample in timed
        )
        sd = pricing.latency(network).sd
        error = predicted / at_base - 1
        rows.append(
            {
                "widths": " ".join(map(str, network.widths)),
                "blocks": " ".join(network.blocks),
                "gmacs": round(count_macs(network).total / 1e9, 3),
                "predicted_ms": round(predicted, 4),
                "stated_sd": round(sd, 4),
                "measured_ms": round(ms, 4),
                "slowest_ms": round(max(sample.ms for sample in timed), 4),
                "reference_ms": round(min(sample.state[0] for sample in timed), 4),
                "measured_at_base_ms": round(at_base, 4),
                "error": round(error, 5),
                "error_raw": round(predicted / ms - 1, 5),
                "covered": abs(error) <= INTERVAL_90 * sd,
            }
        )
    errors = [abs(row["error"]) for row in rows]
    raw = [abs(row["error_raw"]) for row in rows]
    result = {
        "median_error": round(statistics.median(errors), 5),
        "p95_error": round(float(np.quantile(errors, 0.95)), 5),
        "max_error": round(max(errors), 5),
        "kendall_tau": round(
            kendall_tau(
                [row["predicted_ms"] for row in rows],
                [row["measured_at_base_ms"] for row in rows],
            ),
            4,
        ),
        "samples": len(rows),
        "seed": options.seed,
        "median_error_raw": round(statistics.median(raw), 5),
        "p95_error_raw": round(float(np.quantile(raw, 0.95)), 5),
        "covered": round(statistics.mean(row["covered"] for row in rows), 4),
        "disturbed": options.disturb,
        "reference_ms": round(table.reference_ms, 4),
        **asdict(table.conditions),
        "table_entries": len(table.rows),
        "table_held_out_error": table.calibration.held_out_error,
        "table_factor": table.calibration.factor,
        "table_stated_coverage": table.calibration.covered,
        "table_overhead_ms": table.calibration.overhead_ms,
        "table_entries_timed": table.sampled,
        "table_seconds": round(table_seconds, 1),
        "table_spent_seconds": table.facts.get("seconds"),
        "unstable_rows": round(table.unstable, 4),
        "memory_held_out_error": table.memory.held_out_error if table.memory else None,
        "disturbances": disturbances(table.facts),
    }
    if options.name:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with (RESULTS / f"{options.name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    if options.name:
        draw_residuals(
            [(row["predicted_ms"], row["measured_at_base_ms"]) for row in rows],
            f"{options.name}: median error {100 * result['median_error']:.1f} %",
            RESULTS / f"{options.name}.svg",
        )


if __name__ == "__main__":
    main()
