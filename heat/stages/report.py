"""`heat report`: one offline HTML page of what the workspace holds, the answer first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast, get_args

from jinja2 import Environment, PackageLoader, select_autoescape

from deploy.edge.card import Card
from deploy.edge.detect import is_bundle, read_card
from deploy.form import Format
from supernet.atomic import write_text
from supernet.checkpoint import WEIGHTS, file_digest, read_info
from supernet.data.detection_set import DetectionSet
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.network import read_architecture
from supernet.version import version_line

from ..records import Evaluated, Result, Stages, Suspect
from ..thinning.thinned import Thinned, find_thinned
from ..views.inline_svg import embedded
from ..workspace import Workspace
from .network import is_thinned
from .report_charts import (
    Chart,
    fleet_charts,
    profiled,
    table_charts,
    table_facts,
    thinning_charts,
    training_charts,
)
from .report_images import as_jpeg, detected_samples
from .report_network import network_parts, network_rows

MISSED = 15
"""Most rows of classes and sizes of missed objects."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A bundle: its card, and the bytes of its model."""

    card: Card
    size_mb: float
    """MiB of its files, without `detect.py`."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the last `heat eval` found."""

    split: str
    calibration_error: float | None
    elsewhere: float | None
    """The same on images that scores were not calibrated on, where it is of those that they were.
    """
    charts: list[Chart]
    """Precision and recall, confusion, reliability."""
    worst: str
    """JPEG of the worst images, base64; empty without any."""
    missed: list[tuple[str, str, int, int]]
    """Class, size, objects missed, objects; the most missed first."""
    suspects: list[Suspect]


class Speed(TypedDict):
    """A bar of the answer."""

    name: str
    fps: float


def write_report(workspace: Workspace, data: DetectionSet | None) -> Path:
    """Write the page and return its path; parts that do not exist yet are left out."""
    stages = workspace.stages()
    if not stages:
        raise UserError(f"{workspace.root} is empty: run heat build or heat profile first")
    thin = find_thinned(workspace)
    current, outdated = _by_age(workspace)
    folders = [workspace.bundle(form) for form in current]
    bundles = [_deployed(folder) for folder in folders]
    cards = [bundle.card for bundle in bundles]
    scored = stages.get("eval") if _is_current(workspace, "eval") else None
    # By name: it may have been found from another folder, or before the workspace was moved.
    older = {workspace.bundle(form).name for form in outdated}
    if scored is not None and Path(scored.get("scored", "")).name in older:
        scored = None
    if scored is not None and not _is_own(workspace, scored, cards):
        scored = None
    another = _trained_another(workspace)
    trained = _inherited(stages) or ("train" in stages and not another)
    known = bool(cards) or (workspace.train / WEIGHTS).exists()
    parts = network_parts(workspace, thin)
    table = thin.table if thin is not None else profiled(stages)
    speeds = _speeds(thin, cards)
    fleet = _fleet(stages)
    environment = Environment(
        loader=PackageLoader("heat.stages", "."),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        stages=stages,
        thin=thin,
        bundles=bundles,
        kept=_kept(stages, thin, cards) if thin is not None else _fleet_kept(fleet),
        untrained=any(not card["trained"] for card in cards)
        or (thin is not None and not cards and not trained),
        known=known,
        advice=_advice(stages, thin, outdated, cards, scored, another, known=known)
        if thin is not None or known or not fleet
        else None,
        accuracy=_accuracy(scored, cards),
        speeds=speeds,
        fastest=max((speed["fps"] for speed in speeds), default=1.0) * 1.05,
        parts=parts,
        rows=network_rows(parts, thin),
        total_ms=sum(part.ms for part in parts),
        way=thinning_charts(workspace, thin),
        table_charts=table_charts(workspace, table),
        table=table_facts(workspace, table) if table is not None else None,
        training=training_charts(workspace, another),
        root=workspace.root,
        samples=detected_samples(folders, data),
        scored=_scored(workspace, scored),
        run=workspace.about(),
        fleet=fleet,
        fleet_charts=fleet_charts(fleet),
        version=version_line(),
    )
    write_text(workspace.report, page)
    return workspace.report


def _trained_another(workspace: Workspace) -> bool:
    """Return whether the training is of another network than that of the last thinning."""
    weights = workspace.train / WEIGHTS
    if not weights.exists() or not workspace.architecture.exists():
        return False
    trained = read_architecture(read_info(weights).description, str(weights))
    return not is_thinned(trained, Architecture.load(workspace.architecture))


def _is_current(workspace: Workspace, stage: str) -> bool:
    """Return whether a stage is of the network that was thinned and trained last.

    A bundle without a record was put there; what it is of is not known.
    """
    newest = max(map(workspace.finished, ("thin", "train", "adopt")))
    return stage not in workspace.stages() or workspace.finished(stage) >= newest


def _by_age(workspace: Workspace) -> tuple[list[Format], list[Format]]:
    """Return the formats of the bundles of the newest network, and of older ones."""
    found: list[Format] = [form for form in get_args(Format) if is_bundle(workspace.bundle(form))]
    current = [form for form in found if _is_current(workspace, f"export-{form}")]
    return current, [form for form in found if form not in current]


def _deployed(folder: Path) -> Deployed:
    card = read_card(folder)
    files = [folder / name for name in card["files"] if name != "detect.py"]
    size = sum(path.stat().st_size for path in files if path.exists())
    return Deployed(card, size / 2**20)


def _speeds(thin: Thinned | None, cards: list[Card]) -> list[Speed]:
    if thin is None:
        return []
    found = [
        ("target", thin.target_fps),
        ("predicted", thin.predicted_fps),
        ("measured", thin.measured_fps),
        *((f"deployed, {card['model_format']}", card["measured_fps"]) for card in cards),
    ]
    return [{"name": name, "fps": fps} for name, fps in found if fps is not None]


def _kept(stages: Stages, thin: Thinned, cards: list[Card]) -> bool | None:
    records = cast(dict[str, Result], stages)
    exports = [records.get(f"export-{card['model_format']}", {}) for card in cards]
    if any(export.get("broken") for export in exports):
        return False
    measured = [thin.measured_fps]
    measured += [card["measured_fps"] for card in cards if card["target_fps"] is not None]
    target_fps = round(thin.target_fps, 3)  # as the measured ones are
    known = [fps for fps in measured if fps is not None]
    if known and not thin.met:  # another limit, or another device
        return False
    if len(known) < len(measured):  # thinned for a device that is estimated, not at hand
        return None
    return all(fps >= target_fps for fps in known)


def _advice(
    stages: Stages,
    thin: Thinned | None,
    outdated: Sequence[Format],
    cards: list[Card],
    scored: Evaluated | None,
    another: bool,
    *,
    known: bool,
) -> tuple[str, str] | None:
    """Return what is missing and the command that makes it; None where all is there.

    Whether a network is `known` that was not thinned.
    """
    if thin is None and not known:
        return "No network has been thinned yet", "heat thin --target-fps FPS"
    if thin is not None and "train" not in stages and not _inherited(stages):
        return "The network is not trained yet", "heat train --data DIR"
    if another and not _inherited(stages):
        return "Another network is trained than the thinned one", "heat train --restart"
    older = [*outdated, *(card["model_format"] for card in cards if not card["trained"])]
    if older:
        return "A bundle is older than the network", f"heat export --format {older[0]}"
    if not cards:
        return "Nothing is exported yet", "heat export --format onnx"
    if scored is None and not any(card.get("accuracy") for card in cards):
        when = "is older than the network" if "eval" in stages else "was not measured yet"
        return f"Accuracy {when}", "heat eval --split val"
    return None


def _is_own(workspace: Workspace, scored: Evaluated, cards: Sequence[Card]) -> bool:
    """Return whether a score is of the weights or of a bundle that the page is about.

    `heat eval --bundle` records that of any other too, and `--network best` one that is too high.
    """
    of = scored.get("of")
    paths = (workspace.train / WEIGHTS, workspace.inherited)
    own: list[object] = [file_digest(path) for path in paths if path.exists()]
    return of is None or of in [*own, *(dict(card["files"]) for card in cards)]


def _inherited(stages: Stages) -> bool:
    """Return whether the thinned network has weights of an elastic supernet."""
    return "inherited" in stages.get("thin", {})


def _accuracy(scored: Evaluated | None, cards: list[Card]) -> Mapping[str, object] | None:
    """Return AP and the images it was measured on: of a bundle, else of the checkpoint."""
    of_bundles = [card["accuracy"] for card in cards if card.get("accuracy")]
    return of_bundles[0] if of_bundles else scored


def _fleet(stages: Stages) -> list[tuple[str, Result | None]]:
    """Return the result of each member of a fleet, None where its thinning failed."""
    found = stages.get("fleet", {}).get("fleet")
    return list(found.items()) if isinstance(found, dict) else []


def _fleet_kept(fleet: list[tuple[str, Result | None]]) -> bool | None:
    """Say whether all targets are kept; None where there are none, or one was only predicted."""
    members = [member or {} for _, member in fleet]
    if not all(member.get("met") for member in members):
        return False
    known = members and all(member.get("measured_fps") is not None for member in members)
    return True if known else None


def _scored(workspace: Workspace, found: Evaluated | None) -> Scored | None:
    """Return what `heat eval` found wrong; None where it was not run, or by an older version."""
    if found is None or "missed" not in found:
        return None
    folder = workspace.root / "eval"
    charts = [
        Chart(title, text, embedded(path.read_text(encoding="utf-8"), f"eval{index}", title), paper)
        for index, (name, title, text, paper) in enumerate(
            (
                ("precision.svg", "Precision and recall", "At IoU 0.5, a line for each class.", 0),
                (
                    "confusion.svg",
                    "Confusion",
                    "What is there (rows) and what was found (columns). “nothing” in a row: found "
                    "where nothing is labelled; in a column: missed.",
                    1,
                ),
                (
                    "reliability.svg",
                    "Reliability of the scores",
                    "On the diagonal, of the detections at 0.7 seven in ten are right. The numbers "
                    "count detections.",
                    0,
                ),
            )
        )
        for path in [folder / name]
        if path.exists()
    ]
    worst = folder / "mistakes.jpg"
    drawn = worst.exists() and found.get("mistakes_picture") is not None
    missed = [
        (name, size, few, every)
        for name, sizes in found["missed"].items()
        for size, (few, every) in sizes.items()
        if few
    ]
    return Scored(
        split=found["split"],
        calibration_error=found.get("calibration_error"),
        elsewhere=found.get("calibration_error_elsewhere"),
        charts=charts,
        worst=as_jpeg(worst) if drawn else "",
        missed=sorted(missed, key=lambda row: -row[2])[:MISSED],
        suspects=found.get("suspected_labels", []),
    )
