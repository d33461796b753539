"""`heat thin --explain` and `--diff`: why a network looks as it does, in words and a figure."""

import math
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

from supernet.counting import count_macs, count_params
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.place import Place
from supernet.heatdetr.supernet import SearchSpace

from ..records import Result
from ..thinning.ledger import LedgerRow, read_ledger
from ..thinning.thinned import Thinned, need_thinned
from ..views.charts import draw_explanation
from ..workspace import Workspace
from .search_start import start_fps

VERB = {
    "LR": "deleted the least important position of the whole network",
    "IR": "deleted the least important position of the least important stage",
    "SR": "took shifted window attention from its first position",
    "WMR": "took window attention from its first position",
    "RR": "took RepCNN from a position",
    "WR": "narrowed the stage by one head or more",
    "AR": "reduced original attention to clusters or windows",
    "LA": "gave a position back",
    "OA": "gave an operator back",
    "WA": "gave one head's width back",
}
"""What each kind of move does."""
SHOWN = 5


def explain(workspace: Workspace) -> Result:
    """Print on stderr and draw in `thin/explain.svg` how the last thinning went."""
    result = need_thinned(workspace)
    trials = read_ledger(workspace.ledger)
    chosen = [trial for trial in trials if trial.chosen]
    space = result.space
    whole = start_fps(workspace, result)
    lines = [
        *_start(space, result),
        *_moves(chosen, result, whole),
        *_stages(space, result),
        *_close(trials),
    ]
    print("\n".join(lines), file=sys.stderr)
    places = {
        (place.stage, place.position or 0): value
        for name, value in result.importance.items()
        for place in [Place.parse(name)]
    }
    kept = {
        (stage, position): letter
        for stage, (positions, letters) in enumerate(
            zip(result.positions, result.blocks, strict=True), 1
        )
        for position, letter in zip(positions, letters, strict=True)
    }
    steps = [(trial.move, trial.stage, trial.fps) for trial in chosen]
    picture = workspace.ledger.with_name("explain.svg")
    draw_explanation(places, kept, steps, result.target_fps, picture)
    return {"moves": len(chosen), "rejected": len(trials) - len(chosen), "picture": str(picture)}


def _start(space: SearchSpace, result: Thinned) -> list[str]:
    widths = " ".join(map(str, space.widths))
    counts = " ".join(map(str, space.positions))
    speed = result.fps
    runs = "runs" if result.measured_fps else "is predicted to run"
    how = "measured" if result.measured_fps else f"its table is {result.source}"
    return [
        f"Asked for {result.target_fps:g} FPS on {result.device} ({result.runtime}, "
        f"{result.precision}); the network {runs} at {speed:.1f} FPS ({how}).",
        f"The search began with widths {widths} and {counts} positions, ranked by "
        f"{result.ranked_by}; what a move costs: {result.ap_drop_by}.",
    ]


def _moves(chosen: list[LedgerRow], result: Thinned, whole_fps: float | None) -> list[str]:
    """Say what the moves gained, the first against the whole supernet."""
    studied = len(chosen) < result.steps
    begun = ["A study found where the moves begin: thin/study.csv has its trials."] * studied
    if not chosen:
        return begun or ["No move was needed: the whole supernet is fast enough."]
    gained: dict[tuple[str, int], list[float]] = defaultdict(list)
    lost: dict[tuple[str, int], float] = defaultdict(float)
    before = chosen[0].ms if studied or whole_fps is None else 1000.0 / whole_fps
    for trial in chosen:
        key = (trial.move, trial.stage)
        gained[key].append(before - trial.ms)
        lost[key] += trial.ap_drop
        before = trial.ms
    lines = [*begun, f"{len(chosen)} moves were made, by stage:"]
    for (kind, stage), times in sorted(gained.items(), key=lambda item: -sum(item[1])):
        lines.append(
            f"  S{stage} {len(times):3d} x {kind:3s} {VERB.get(kind, kind)}: {sum(times):.2f} ms "
            f"saved, {lost[(kind, stage)]:.2f} lost"
        )
    return lines


def _stages(space: SearchSpace, result: Thinned) -> list[str]:
    lines = ["What is left:"]
    for stage in (1, 2, 3, 4):
        positions, letters = result.positions[stage - 1], result.blocks[stage - 1]
        kept = ", ".join(
            f"{position}:{letter} (M {result.importance[f's{stage}_{position}']:.2f})"
            for position, letter in zip(positions, letters, strict=True)
        )
        gone = sorted(
            result.importance[f"s{stage}_{position}"]
            for position in range(space.positions[stage - 1])
            if position not in positions
        )
        dropped = f"; dropped M {', '.join(f'{m:.2f}' for m in gone[:SHOWN])}" if gone else ""
        dropped += " ..." if len(gone) > SHOWN else ""
        lines.append(
            f"  S{stage} width {result.widths[stage - 1]} of {space.widths[stage - 1]}: "
            f"{kept}{dropped}"
        )
    return lines


def _close(trials: list[LedgerRow]) -> list[str]:
    """Name the last choice that was close."""
    if not trials:
        return []
    last = trials[-1].step
    options = sorted(
        (trial for trial in trials if trial.step == last), key=lambda trial: trial.ratio
    )
    if len(options) < 2 or math.isinf(options[0].ratio):
        return []
    best, second = options[0], options[1]
    return [
        f"The last choice was {best.move} in S{best.stage} ({best.ratio:.3g} lost "
        f"per FPS gained) before {second.move} in S{second.stage} "
        f"({second.ratio:.3g})."
    ]


def compare(first: Path, second: Path) -> Result:
    """Print and return what differs between two architectures."""
    a, b = Architecture.load(first), Architecture.load(second)
    lines, differing = [], []
    blocks = [(f"S{n}", x, y) for n, (x, y) in enumerate(zip(a.blocks, b.blocks, strict=True), 1)]
    others = [
        (name.removeprefix("num_").replace("_", " "), getattr(a, name), getattr(b, name))
        for name in (field.name for field in fields(Architecture))
        if name not in ("name", "blocks")
    ]
    for name, old, new in (*others, *blocks):
        if old != new:
            differing.append(name)
            lines.append(f"  {name}: {old} -> {new}")
    macs = count_macs(a).total / 1e9, count_macs(b).total / 1e9
    params = count_params(a) / 1e6, count_params(b) / 1e6
    lines.append(
        f"  GMACs: {macs[0]:.3f} -> {macs[1]:.3f} ({100 * (macs[1] / macs[0] - 1):+.1f} %)"
    )
    lines.append(
        f"  parameters: {params[0]:.2f} M -> {params[1]:.2f} M "
        f"({100 * (params[1] / params[0] - 1):+.1f} %)"
    )
    print("\n".join([f"{first} -> {second}", *lines]), file=sys.stderr)
    return {
        "same": not differing,
        "differing": differing,
        "gmacs": [round(value, 4) for value in macs],
        "params_m": [round(value, 4) for value in params],
    }
