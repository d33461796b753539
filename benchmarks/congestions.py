"""The paper's three bottlenecks ("congestions") on this CPU: LayerNorm, branches, hardware.

    python benchmarks/congestions.py [--threads 1] [--write]

Stacks of twelve layers (width 192, 28x28) are timed against each other, interleaved, in every
runtime and precision that this CPU executes. The paper's claims: BatchNorm instead of LayerNorm
makes blocks 13 to 21 % faster; branches cost time although they add few operations; which block is
fastest depends on the hardware. The last is confirmed where two stacks change places from one
setting to another by a clear `MARGIN` in both. The last line is one JSON object.
"""

import argparse
from collections.abc import Collection, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from result import tell

from deploy.edge.session import runtime_version
from heat.views.charts import draw_stacks
from latency_tables.probe.machine import detect_cpu
from latency_tables.probe.setting import Setting
from latency_tables.stacks import LAYERS, Setup, measure_stacks

RESULTS = Path(__file__).parent / "results" / "congestions"
PLACES = (
    ("onnxruntime", "f32"),
    ("openvino", "f32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
PAPER_LN_TO_BN = (0.13, 0.21)
MARGIN = 0.1
"""Share of time that one stack must save over another: noise is some percent."""


def verdicts(ms: dict[str, float]) -> dict[str, Any]:
    """Return the ratios that test the three claims."""
    return {
        # Share of time saved by BatchNorm, which is folded into its neighbours.
        "ln_to_bn_deit": round(1 - ms["DeiT-BN"] / ms["DeiT-LN"], 4),
        "ln_to_bn_swin": round(1 - ms["Swin-BN"] / ms["Swin-LN"], 4),
        "branches_cost": round(ms["RepCNN, branches"] / ms["RepCNN"] - 1, 4),
        "self_attention_over_channel_wise": round(ms["self-attention"] / ms["channel-wise"], 3),
        "wmsa_over_repcnn": round(ms["WMSA_bn"] / ms["RepCNN"], 3),
        "swmsa_over_wmsa": round(ms["SWMSA_bn"] / ms["WMSA_bn"], 3),
        "hod_over_deit_ln": round(ms["HOD"] / ms["DeiT-LN"], 3),
        "hod_over_swin_ln": round(ms["HOD"] / ms["Swin-LN"], 3),
        "order_fastest_first": sorted(ms, key=lambda name: ms[name]),
    }


def swapped(places: Collection[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Return the stacks of which the first is clearly faster in one place, and slower in another.

    Places give frames per second by stack.
    """
    wins = {
        (first, second)
        for fps in places
        for first, second in permutations(fps, 2)
        if fps[second] <= (1 - MARGIN) * fps[first]
    }
    return sorted(pair for pair in wins if pair < pair[::-1] and pair[::-1] in wins)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    cpu = detect_cpu()
    setup = Setup()
    places: dict[str, Any] = {}
    for runtime, precision in PLACES:
        setting = Setting(runtime=runtime, precision=precision, threads=options.threads)
        ms = measure_stacks(setting, setup)
        name = f"{runtime}-{precision}"
        places[name] = {
            "runtime_version": runtime_version(runtime),
            "fps": {stack: round(1000 / value, 2) for stack, value in ms.items()},
            **verdicts(ms),
        }
        if options.write:
            title = f"{cpu.model}, {name}, {options.threads} thread(s): {LAYERS} layers"
            draw_stacks(ms, title, RESULTS / f"figure2-{name}.svg")
    saved = [p[key] for p in places.values() for key in ("ln_to_bn_deit", "ln_to_bn_swin")]
    changed = swapped([place["fps"] for place in places.values()])
    low, high = PAPER_LN_TO_BN
    result = {
        "places": places,
        "congestion_1_ln_to_bn": {
            "saved": [min(saved), max(saved)],
            "paper": PAPER_LN_TO_BN,
            "confirmed": all(low <= value <= high for value in saved),
        },
        "congestion_2_branches": {name: place["branches_cost"] for name, place in places.items()},
        "congestion_3_hardware": {
            "swapped": changed,
            "wmsa_over_repcnn": {n: p["wmsa_over_repcnn"] for n, p in places.items()},
            "confirmed": bool(changed),
        },
        "machine": cpu.model,
        "flags": list(cpu.flags),
        "threads": options.threads,
        "width": setup.width,
        "side": setup.side,
    }
    tell(result, RESULTS / "result.json" if options.write else None)


if __name__ == "__main__":
    main()
