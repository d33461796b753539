"""`heat report`: one offline HTML page of what the workspace holds."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from deploy.edge.card import Card
from deploy.edge.detect import Bundle, read_card
from deploy.edge.drawing import draw
from deploy.edge.score_limits import score_limits
from deploy.form import RUNTIME_OF
from latency_tables.curves import block_curves
from supernet.atomic import write_text
from supernet.checkpoint import read_info
from supernet.data.detection_set import DetectionSet
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.letterbox import read_image
from supernet.version import __version__

from ..records import Stages, Suspect
from ..tables import recorded_table
from ..thinning.thinned import Thinned, find_thinned
from ..views.charts import table_figure
from ..views.learning import LOSSES
from ..workspace import Workspace

SAMPLES = 6
MISSED = 15
"""Most rows of classes and sizes of missed objects."""

Chart = tuple[str, str, str]
"""Title, explanation, SVG."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the network, as the report lists it."""

    place: str
    op: str
    widths: str
    """Input channels, and output channels where they differ."""
    map: str
    """Height x width of its feature map."""
    ms: float
    """Its share of the predicted latency."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What the last `heat eval` found wrong."""

    split: str
    calibration_error: float | None
    picture: str
    """JPEG of the worst images, base64; empty without any."""
    curve: str
    """SVG of precision by score."""
    missed: list[tuple[str, str, int, int]]
    """Class, size, objects missed, objects; the most missed first."""
    suspects: list[Suspect]


def write_report(workspace: Workspace, data: DetectionSet | None) -> Path:
    """Write the page and return its path; parts that do not exist yet are left out."""
    stages = workspace.stages()
    if not stages:
        raise UserError(f"{workspace.root} is empty: run heat build or heat profile first")
    thin = find_thinned(workspace)
    folders = [workspace.bundle(format) for format in RUNTIME_OF]
    cards = [read_card(folder) for folder in folders if (folder / "card.json").exists()]
    parts = _parts(workspace, thin)
    environment = Environment(
        loader=PackageLoader("heat.stages", "."), autoescape=select_autoescape(default=True)
    )
    page = environment.get_template("report.html.jinja").render(
        stages=stages,
        thin=thin,
        cards=cards,
        kept=_kept(thin, cards),
        parts=parts,
        total_ms=sum(part.ms for part in parts),
        longest=max((part.ms for part in parts), default=1.0),
        figures=[
            *_thinning_chart(workspace, thin),
            *_table_chart(workspace, thin.table if thin is not None else _profiled(stages)),
            *_training_chart(workspace),
        ],
        samples=_samples(folders, data),
        scored=_scored(workspace, stages),
        version=__version__,
    )
    write_text(workspace.report, page)
    return workspace.report


def _kept(thin: Thinned | None, cards: list[Card]) -> bool | None:
    if thin is None:
        return None
    measured = [thin.measured_fps]
    measured += [card["measured_fps"] for card in cards if card["target_fps"] is not None]
    target_fps = round(thin.target_fps, 3)  # as the measured ones are
    known = [fps for fps in measured if fps is not None]
    if len(known) < len(measured):  # thinned for a device that is estimated, not at hand
        return None
    return all(fps >= target_fps for fps in known)


def _parts(workspace: Workspace, thin: Thinned | None) -> list[Part]:
    if thin is None:
        return []
    table = recorded_table(workspace, thin.table)
    times, calibration = table.times_ms(), table.calibration
    entries = Architecture.load(workspace.architecture).entries()
    if any(entry not in times for entry in entries.values()):
        return []  # the table was measured again, for another space
    shares = {place: calibration.predict_ms(times[entry], 1) for place, entry in entries.items()}
    # The parts add up to the latency that was predicted, corrections by measuring included.
    scale = thin.predicted_ms / sum(shares.values())
    return [
        Part(
            place=place,
            op=entry.op,
            widths=f"{entry.d_in}" if entry.d_in == entry.d_out else f"{entry.d_in}→{entry.d_out}",
            map=f"{entry.h}x{entry.w}",
            ms=shares[place] * scale,
        )
        for place, entry in entries.items()
    ]


def _thinning_chart(workspace: Workspace, thin: Thinned | None) -> list[Chart]:
    if thin is None or not workspace.ledger.exists():
        return []
    frame = pd.read_csv(workspace.ledger)
    if frame.empty:
        return []
    figure, axes = _axes("step", "predicted FPS")
    chosen = frame[frame["chosen"] == 1]
    rejected = frame[frame["chosen"] == 0]
    axes.plot(rejected["step"], rejected["fps"], ".", color="#bbb", label="scored, not taken")
    axes.plot(chosen["step"], chosen["fps"], "-o", color="#4c78a8", label="taken", markersize=4)
    for _, row in chosen.iterrows():
        axes.annotate(
            f"{row['move']} S{row['stage']}",
            (row["step"], row["fps"]),
            textcoords="offset points",
            xytext=(0, 7),
            fontsize=6,
            rotation=60,
        )
    axes.axhline(thin.target_fps, color="#c0392b", linestyle="--", label="target")
    axes.legend()
    text = (
        "LR and IR delete a position, SR and WMR take shifted and plain windows away, WR takes one "
        f"head's width off a stage. AP_drop is the {thin.ap_drop_by}."
    )
    return [("The way to the target", text, _svg(figure))]


def _profiled(stages: Stages) -> str | None:
    """Return the file of the table that was profiled last."""
    return stages["profile"]["table"] if "profile" in stages else None


def _table_chart(workspace: Workspace, path: str | None) -> list[Chart]:
    if path is None:
        return []
    table = recorded_table(workspace, path)
    if not block_curves(table):
        return []
    error = table.calibration.held_out_error
    text = f"{len(table.rows)} entries of {table.conditions.stem}. "
    if error is not None:
        text += f"Median error on networks not used for calibration: {100 * error:.1f} %."
    if table.estimated:
        text += " ESTIMATED from published figures, not measured."
    return [("The latency table", text, _svg(table_figure(table)))]


def _training_chart(workspace: Workspace) -> list[Chart]:
    charts = []
    for title, folder in (("Supernet training", workspace.supernet), ("Training", workspace.train)):
        path = folder / "weights.safetensors"
        if not path.exists():
            continue
        history = pd.DataFrame(read_info(path).history)
        if history.empty:
            continue
        figure, axes = _axes("epoch", "loss")
        for term, label in LOSSES.items():
            if term in history:
                axes.plot(history["epoch"], history[term], label=label)
        axes.legend()
        charts.append((title, f"{len(history)} epochs.", _svg(figure)))
    return charts


def _samples(folders: list[Path], data: DetectionSet | None) -> list[tuple[str, str]]:
    ready = [folder for folder in folders if (folder / "card.json").exists()]
    if data is None or not ready:
        return []
    samples = []
    with Bundle(ready[0]) as bundle:
        limits = score_limits(bundle.card, bundle.names)
        for record in data.records[:SAMPLES]:
            image = read_image(record.path, (record.height, record.width))
            if image is None:
                continue
            found = bundle.detect(image, score=0.0).once(limits).above(limits)
            drawn = draw(image, found, bundle.names)
            ok, encoded = cv2.imencode(".jpg", drawn[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
            if ok:
                samples.append((record.path.name, base64.b64encode(encoded.tobytes()).decode()))
    return samples


def _scored(workspace: Workspace, stages: Stages) -> Scored | None:
    """Return what `heat eval` found wrong; None where it was not run, or by an older version."""
    found = stages.get("eval")
    if found is None or "missed" not in found:
        return None
    picture, curve = (
        workspace.root / "eval" / name for name in ("mistakes.jpg", "reliability.svg")
    )
    drawn = picture.exists() and found.get("mistakes_picture") is not None
    text = curve.read_text(encoding="utf-8") if curve.exists() else "<svg></svg>"
    missed = [
        (name, size, few, every)
        for name, sizes in found["missed"].items()
        for size, (few, every) in sizes.items()
    ]
    return Scored(
        split=found["split"],
        calibration_error=found.get("calibration_error"),
        picture=base64.b64encode(picture.read_bytes()).decode() if drawn else "",
        curve=text[text.index("<svg") :],
        missed=sorted(missed, key=lambda row: -row[2])[:MISSED],
        suspects=found.get("suspected_labels", []),
    )


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    text = stream.getvalue()
    return text[text.index("<svg") :]
