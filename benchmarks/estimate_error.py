"""How wrong are estimated tables? Estimates this machine from its specifications and compares.

    python benchmarks/estimate_error.py --tables DIR [DIR ...] [--write]
    python benchmarks/estimate_error.py --published [--write]

DIR hold measured tables of this machine (benchmarks/latency_sum.py --tables DIR makes them). Each
table is estimated three times: with efficiencies fitted on itself (how well a roofline can fit at
best), on all other tables (another runtime, precision, size or thread count), and on those of other
runtimes only. Then few-shot correction: the estimate from the others, corrected by 10 rows. Rows
that a table models from others are neither fitted on nor compared with; whole networks are compared
with the table's predictions. With --write the efficiencies that HEAT ships are fitted on all tables
and saved with these errors, and the estimated tables are written. With --published the shipped
efficiencies are kept: only the corrections by published times (`latency_tables/published.py`) are
computed, and with --write the tables of those devices are written. The last line is one JSON
object.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result import tell

from heat.spaces import search_space
from latency_tables.device_file import Figures, find_device
from latency_tables.devices import declared
from latency_tables.estimate import corrected, entry_errors, estimated_table, spread_entries
from latency_tables.networks import random_architecture
from latency_tables.plan import space_entries
from latency_tables.probe.timings import today
from latency_tables.published import correction_for, roofline_ms
from latency_tables.roofline import Efficiencies
from latency_tables.store import SHIPPED
from latency_tables.table import LatencyTable
from latency_tables.table_file import read_table, write_table

RESULT = Path(__file__).parent / "results" / "estimate-error.json"
FEW = 10
SHIPPED_DEVICES = ("v100", "gtx-1080ti", "cpu-i7", "cpu-i7-dual")
PUBLISHED_SETTINGS = (
    ("v100", "torch", "f32"),
    ("v100", "tensorrt", "f16"),
    ("gtx-1080ti", "tensorrt", "f32"),
)
"""Device, runtime and precision for which whole networks were timed by others."""


def timed(table: LatencyTable) -> LatencyTable:
    """Return the rows of a table that were timed themselves, not modelled from others."""
    rows = {entry: row for entry, row in table.rows.items() if row.source == "measured"}
    return replace(table, rows=rows)


def fit(tables: Iterable[tuple[LatencyTable, Figures]]) -> Efficiencies:
    """Fit efficiencies on the timed rows of tables."""
    return Efficiencies.fit([(timed(table), figures) for table, figures in tables])


def estimate_like(table: LatencyTable, figures: Figures, fitted: Efficiencies) -> LatencyTable:
    """Estimate a measured table's entries under its own setting."""
    target = declared(table.conditions.device)
    assert target.device.figures == figures
    setting = table.conditions.setting
    target = declared(
        table.conditions.device,
        runtime=setting.runtime,
        threads=setting.threads,
        precision=setting.precision,
    )
    return estimated_table(target, table.conditions.input_size, table.rows, fitted)


def network_errors(estimate: LatencyTable, table: LatencyTable) -> list[float]:
    """Return |estimated / predicted - 1| of 50 random networks."""
    space = search_space("large", input_size=table.conditions.input_size, num_classes=80)
    rng = np.random.default_rng(7)
    errors = []
    for _ in range(50):
        network = random_architecture(rng, space.template, space.widths, space.positions)
        if not table.missing(network.entries()):
            errors.append(abs(estimate.predict_ms(network) / table.predict_ms(network) - 1))
    return errors


def judge(estimate: LatencyTable, table: LatencyTable) -> dict[str, float]:
    """Return the median errors of entries and of networks."""
    entries = entry_errors(estimate, timed(table).times_ms())
    networks = network_errors(estimate, table)
    return {
        "entry_median": round(statistics.median(entries), 4),
        "entry_p90": round(float(np.quantile(entries, 0.9)), 4),
        "network_median": round(statistics.median(networks), 4),
    }


def few_shot(estimate: LatencyTable, table: LatencyTable) -> dict[str, float]:
    """Return the errors of an estimate that is corrected by a few measured rows."""
    chosen = spread_entries(timed(table).rows, FEW)
    better = corrected(estimate, {entry: table.rows[entry] for entry in chosen})
    return judge(better, table)


def published_checks(efficiencies: Efficiencies) -> dict[str, Any]:
    """Return how published times correct the estimates, and predict each other."""
    found = {}
    for device, runtime, precision in PUBLISHED_SETTINGS:
        target = declared(device, runtime=runtime, precision=precision)
        assert target.device.figures is not None
        plain = {
            point.network: round(roofline_ms(point, target.device.figures, efficiencies), 3)
            for point in target.device.published
            if point.precision == precision
        }
        correction = correction_for(target, target.device.figures, efficiencies)
        found[f"{device} {runtime} {precision}"] = {"uncorrected_ms": plain, **correction.facts()}
    return found


def write_estimates(efficiencies: Efficiencies, devices: Iterable[str]) -> None:
    """Write the estimated tables that HEAT ships."""
    space = search_space("large", input_size=(448, 448), num_classes=80)
    every = space_entries(space.template, space.widths, oa=True)
    for name in sorted(devices):
        write_table(estimated_table(declared(name), (448, 448), every, efficiencies), SHIPPED)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, nargs="+", default=[SHIPPED])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    if options.published:
        shipped = Efficiencies.load()
        result = json.loads(RESULT.read_text())  # of its own date
        result |= {"published": published_checks(shipped), "published_date": today()}
        if options.write:
            write_estimates(shipped, {device for device, _, _ in PUBLISHED_SETTINGS})
        tell(result, RESULT if options.write else None)
        return
    paths = [path for folder in options.tables for path in sorted(folder.glob("*.csv"))]
    tables = [table for table in map(read_table, paths) if not table.estimated]
    known = []
    for table in tables:
        figures = find_device(table.conditions.device).figures
        if figures and table.conditions.precision in figures.peak_gflops:
            known.append((table, figures))
    found: dict[str, Any] = {}
    for table, figures in known:
        others = [pair for pair in known if pair[0] is not table]
        foreign = [
            pair for pair in others if pair[0].conditions.runtime != table.conditions.runtime
        ]
        own = estimate_like(table, figures, fit([(table, figures)]))
        result: dict[str, Any] = {"fitted_on_itself": judge(own, table)}
        if others:
            estimate = estimate_like(table, figures, fit(others))
            result["fitted_on_others"] = judge(estimate, table)
            result["few_shot"] = few_shot(estimate, table)
        if foreign:
            estimate = estimate_like(table, figures, fit(foreign))
            result["fitted_on_other_runtimes"] = judge(estimate, table)
            result["few_shot_other_runtimes"] = few_shot(estimate, table)
        found[table.conditions.stem] = result

    def middle(kind: str, what: str) -> float | None:
        values = [result[kind][what] for result in found.values() if kind in result]
        return round(statistics.median(values), 4) if values else None

    summary = {
        kind: {what: middle(kind, what) for what in ("entry_median", "network_median")}
        for kind in (
            "fitted_on_itself",
            "fitted_on_others",
            "fitted_on_other_runtimes",
            "few_shot",
            "few_shot_other_runtimes",
        )
    }
    efficiencies = fit(known)
    error = {
        "other_setting": summary["fitted_on_others"]["network_median"],
        "other_runtime": summary["fitted_on_other_runtimes"]["network_median"],
        "few_shot_10": summary["few_shot_other_runtimes"]["network_median"],
        "note": "median error of whole networks, this machine's tables estimated from others of "
        "the same machine; no second machine was at hand, so the error on another is not known",
    }
    shipped = Efficiencies(efficiencies.coefficients, efficiencies.fitted_on, error)
    result = {
        "summary": summary,
        "tables": found,
        "published": published_checks(efficiencies),
    }
    if options.write:
        shipped.save()
        write_estimates(shipped, SHIPPED_DEVICES)
    tell(result, RESULT if options.write else None)


if __name__ == "__main__":
    main()
