"""Tables and supernets to be read: `heat profile --compare`, `--show`, `heat supernet --show`."""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from deploy.edge.session import runtime_version
from latency_tables.compare import AGREE, compare
from latency_tables.conditions import name_of
from latency_tables.device_file import load_devices
from latency_tables.probe.lock import only_one
from latency_tables.probe.machine import detect_cpu
from latency_tables.probe.setting import Setting
from latency_tables.stacks import measure_stacks
from latency_tables.store import SHIPPED
from latency_tables.table_file import read_table
from supernet.atomic import write_text
from supernet.errors import PromiseError, TableError, UserError

from ..records import Result
from ..views.charts import draw_logits, draw_stacks, draw_table
from ..views.tables import compare_operators, show_blocks, show_importance, show_stacks
from ..workspace import Workspace


def compare_tables(first: Path, second: Path) -> Result:
    """Compare two tables; two of the same conditions that do not agree are a broken promise."""
    found = compare(read_table(first), read_table(second))
    compare_operators(found, first.name, second.name)
    speed = None if math.isnan(found.speed) else round(found.speed, 4)
    result = {"a": str(first), "b": str(second), **asdict(found), "speed": speed}
    result["agree"] = found.agree
    percent = f"{100 * found.median_difference:.1f} % on the median entry"
    if found.different:
        print(f"measured under different conditions ({found.different})", file=sys.stderr)
    elif not found.agree:
        raise PromiseError(
            f"{first.name} and {second.name} differ by {percent}, allowed {100 * AGREE:g} %: "
            "profile again on a quiet machine",
            result,
        )
    else:
        print(
            f"they agree: {percent} at equal speed (allowed {100 * AGREE:g} %), "
            f"{100 * found.median_difference_raw:.1f} % as measured",
            file=sys.stderr,
        )
    return result


def show_device(workspace: Workspace, device: str) -> Result:
    """Draw every table of a device, and Figure 2 where this machine is that device."""
    paths = sorted(
        path
        for folder in (workspace.tables, SHIPPED)
        for path in folder.glob("*.csv")
        if path.name.startswith(f"{device}-") and path.with_suffix(".json").exists()
    )
    # cpu-i7-dual is not cpu-i7: the conditions know the name, the file name only begins with it.
    tables = {path: read_table(path) for path in paths}
    tables = {path: table for path, table in tables.items() if table.conditions.device == device}
    if not tables:
        slug = detect_cpu().slug
        raise TableError(
            f"no table of {device} in {workspace.tables}: heat profile makes one; this machine's "
            f"tables are called {slug}"
        )
    figures: list[str] = []
    stacks: dict[str, dict[str, float]] = {}
    for path, table in tables.items():
        show_blocks(table)
        picture = workspace.root / "pictures" / f"{path.stem}.svg"
        figures.append(str(draw_table(table, picture)))
    if device == detect_cpu().slug or _is_here(device):
        settings = {table.conditions.setting for table in tables.values() if not table.estimated}
        for setting in sorted(settings, key=str):
            ms = stacks_of(workspace, setting)
            name = name_of(setting)
            show_stacks(ms, name)
            picture = workspace.root / "pictures" / f"{device}-{name}-figure2.svg"
            title = f"{detect_cpu().model}, {name}: width 192, 28x28"
            figures.append(str(draw_stacks(ms, title, picture)))
            stacks[name] = {stack: round(1000 / time, 1) for stack, time in ms.items()}
    for file in figures:
        print(f"figure: {file}", file=sys.stderr)
    return {"device": device, "pictures": figures, "stacks": stacks}


def _is_here(device: str) -> bool:
    """Say whether a device of a file is this machine; others are known by their tables alone."""
    known = load_devices().get(device)
    return known is not None and known.means(detect_cpu().model)


def stacks_of(workspace: Workspace, setting: Setting) -> dict[str, float]:
    """Return the milliseconds of the stacks of Figure 2, measured here once and kept."""
    version = f"{setting.runtime}-{runtime_version(setting.runtime)}"
    name = f"figure2-{detect_cpu().slug}-{version}-{name_of(setting)}.json"
    path = workspace.tables / name
    with only_one(path):
        if path.exists():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise UserError(f"{path} cannot be read ({error}): delete it") from None
        print(f"measuring the stacks of Figure 2 ({name})", file=sys.stderr)
        found = measure_stacks(setting)
        write_text(path, json.dumps(found, indent=1) + "\n")
        return found


def show_supernet(workspace: Workspace) -> Result:
    """Draw and print what the selection logits became, and how important each position is."""
    from supernet.checkpoint import WEIGHTS, read_info
    from supernet.heatdetr.place import local_name
    from supernet.heatdetr.supernet import CANDIDATES, SearchSpace

    from ..thinning.moves import State, importances

    path = workspace.supernet / WEIGHTS
    if not path.exists():
        raise UserError(f"no supernet in {workspace.root}: run heat supernet --data DIR first")
    info = read_info(path)
    history = [entry for entry in info.history if "r" in entry]
    if not history:
        raise UserError(f"{path} was trained by a HEAT that kept no logits: train it again")
    space = SearchSpace.from_json(info.description, str(path))
    final = history[-1]["r"]
    places = State.full(space).allowed
    weights = importances(space, {place: tuple(final[local_name(*place)]) for place in places})
    show_importance(weights, {name: final[name] for name in weights}, CANDIDATES)
    picture = draw_logits(
        [entry["epoch"] for entry in history],
        {name: [entry["r"][name] for entry in history] for name in weights},
        CANDIDATES,
        weights,
        workspace.supernet / "logits.svg",
    )
    return {
        "epoch": info.epoch,
        "importance": {name: round(value, 4) for name, value in weights.items()},
        "logits": {name: [round(value, 4) for value in final[name]] for name in weights},
        "picture": str(picture),
    }
