"""Is the sum true? Predicts random networks with a latency table, then measures each of them.

    python benchmarks/latency_sum.py --runtime openvino --precision bf16 --input-size 320x512 \
        --samples 20 --seed 0 --name openvino-bf16-320x512

The networks are drawn over the whole `large` space and are none of those that calibrate the table.
Each is measured in three processes of its own, minutes apart, in turns with the reference network;
medians count. The clock of a shared machine wanders by ten percent and more, the ratio of the two
does not: measured times are taken to the reference's speed in the table (`error`). The lowest time
as it was, whatever the clock did, is compared too (`error_raw`). Without
--tables the table is measured from nothing; with --complete all its 766 entries are, not only those
needed. With --name, table, picture and result are written to benchmarks/results/latency-sum/.
The last line is one JSON object.
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
from result import tell

from heat.charts import draw_residuals
from heat.spaces import search_space
from heat.stages.profile import disturbances
from latency_tables.batch import NetworkResult
from latency_tables.devices import resolve
from latency_tables.drift import same_state, scale_to
from latency_tables.fresh import time_network
from latency_tables.models import write_network
from latency_tables.networks import random_architecture, reference_architecture
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.profile import FRESH_COMMAND, calibrate, fill
from latency_tables.store import open_table
from supernet.architecture import Architecture, parse_size
from supernet.progress import Progress
from supernet.supernet import SearchSpace

RESULTS = Path(__file__).parent / "results" / "latency-sum"
PASSES = 3
"""Fresh processes in which each network is measured, all networks in turn."""


def draw_networks(space: SearchSpace, samples: int, seed: int) -> list[Architecture]:
    """Draw networks that no table is calibrated with."""
    known = check_networks(space.template, space.widths, space.positions, Checks())
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
    parser.add_argument("--complete", action="store_true")
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
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.tables or Path(scratch)
        table = open_table(folder, target, size)
        needed = [entry for network in networks for entry in network.entries().values()]
        if options.complete:
            needed = space_entries(space.template, space.widths, oa=True)
        started = time.monotonic()
        fill(table, needed, save=lambda: table.save(folder))
        filled = time.monotonic() - started
        if table.memory is None:
            calibrate(table, space.template, space.widths, space.positions)
        table_seconds = time.monotonic() - started
        table.save(folder)
        setting = table.conditions.setting
        reference = write_network(reference_architecture(size), setting)
        measured: list[NetworkResult] = []
        with Progress("random networks", PASSES * len(networks)) as bar:
            for _ in range(PASSES):
                for index, network in enumerate(networks):
                    model = write_network(network, setting, seed=index)
                    measured.append(time_network(model, reference, setting, FRESH_COMMAND))
                    bar.advance(f"{measured[-1].ms:.2f} ms")
    speed_ms = table.reference_ms
    rows: list[dict[str, Any]] = []
    for index, network in enumerate(networks):
        timed = measured[index :: len(networks)]
        predicted = table.predict_ms(network)
        ms = min(result.ms for result in timed)
        at_table_speed = statistics.median(
            result.ms * scale_to(speed_ms, result.reference_ms) for result in timed
        )
        rows.append(
            {
                "widths": " ".join(map(str, network.widths)),
                "blocks": " ".join(network.blocks),
                "gmacs": round(network.macs().total / 1e9, 3),
                "predicted_ms": round(predicted, 4),
                "measured_ms": round(ms, 4),
                "slowest_ms": round(max(result.ms for result in timed), 4),
                "reference_ms": round(min(result.reference_ms for result in timed), 4),
                "measured_at_table_speed_ms": round(at_table_speed, 4),
                "error": round(predicted / at_table_speed - 1, 5),
                "error_raw": round(predicted / ms - 1, 5),
                "same_state": all(same_state(t.reference_ms, speed_ms) for t in timed),
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
                [row["measured_at_table_speed_ms"] for row in rows],
            ),
            4,
        ),
        "samples": len(rows),
        "seed": options.seed,
        "median_error_raw": round(statistics.median(raw), 5),
        "p95_error_raw": round(float(np.quantile(raw, 0.95)), 5),
        "reference_ms": round(speed_ms, 4),
        "in_another_state": sum(not row["same_state"] for row in rows),
        **asdict(table.conditions),
        "table_entries": len(table.rows),
        "table_held_out_error": table.calibration.held_out_error,
        "table_factor": table.calibration.factor,
        "table_overhead_ms": table.calibration.overhead_ms,
        "table_fill_seconds": round(filled, 1),
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
        draw_residuals(
            [(row["predicted_ms"], row["measured_at_table_speed_ms"]) for row in rows],
            f"{options.name}: median error {100 * result['median_error']:.1f} %",
            RESULTS / f"{options.name}.svg",
        )
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
