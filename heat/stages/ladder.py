"""`heat export --ladder`: several networks of one elastic supernet in a folder, to hold a rate."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.edge.ladder import LADDER_FILE, LADDER_FORMAT, Rung
from deploy.whole_folder import replacing_folder
from latency_tables.devices import Target
from supernet.data.detection_set import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.progress import stages

from ..records import Result
from ..thinning.again import part_of
from ..thinning.candidates import Wanted
from ..thinning.source import load_elastic
from ..workspace import Workspace
from .fleet_build import missed_by, ship


@stages("thin", "export")
@part_of("heat export --ladder")
def export_ladder(
    workspace: Workspace,
    rungs: Mapping[float, Wanted],
    val: DetectionSet,
    *,
    target_of: Callable[[Workspace], Target],
    calibrate: bool,
) -> Result:
    """Thin and export for each frame rate, and put the bundles in one folder.

    A rung that misses its rate is reported by a `PromiseError` once all are there, and left out
    where it could not be exported. Raises `UserError` where no elastic supernet is trained.
    """
    if load_elastic(workspace) is None:
        raise UserError(
            "--ladder takes its networks from one training: heat supernet --elastic --data DIR "
            "first"
        )
    folder = workspace.root / "bundle-ladder"
    found: dict[str, Result] = {}
    missed = []
    for fps, wanted in sorted(rungs.items()):
        name = f"{fps:g}-fps"
        try:
            found[name] = ship(
                workspace.member(name), name, wanted, val, target_of, calibrate=calibrate
            )
        except PromiseError as error:
            missed.append(f"{name}: {error}")
            known = missed_by(workspace.member(name), error.result or {})
            if "bundle" in known:  # its card states what it runs at
                found[name] = known
    if found:
        with workspace.claimed(folder, f"exporting to {folder}"):
            _write(folder, found)
    result: dict[str, object] = {
        "bundle": str(folder) if found else None,
        "rungs": found,
        "met": not missed,
    }
    workspace.record("export-ladder", result)
    if missed:
        raise PromiseError("; ".join(missed), result)
    return result


def _write(folder: Path, found: Mapping[str, Result]) -> None:
    """Write the ladder's folder: the bundles, what they are for, and a script that runs them."""
    rungs: list[Rung] = []
    with replacing_folder(folder) as scratch:
        for name, result in found.items():
            bundle = Path(str(result["bundle"]))
            shutil.copytree(bundle, scratch / name)
            rungs.append({"bundle": name, "target_fps": float(str(result["target_fps"]))})
        shutil.copy2(scratch / rungs[0]["bundle"] / "detect.py", scratch / "detect.py")
        ladder = {"format": LADDER_FORMAT, "rungs": rungs}
        (scratch / LADDER_FILE).write_text(json.dumps(ladder, indent=1) + "\n", encoding="utf-8")
