"""Figures of `heat report`: the way of thinning, importance, the table, training."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from latency_tables.conditions import Conditions
from latency_tables.curves import block_curves
from supernet.checkpoint import WEIGHTS, read_info
from supernet.heatdetr.place import Place
from supernet.heatdetr.supernet import SearchSpace

from ..records import Result, Stages
from ..tables import recorded_table
from ..thinning.ledger import read_ledger
from ..thinning.moves import importances
from ..thinning.thinned import Thinned
from ..views.inline_svg import page_svg
from ..views.report_figures import (
    Trial,
    draw_ap,
    draw_blocks,
    draw_importance,
    draw_losses,
    draw_members,
    draw_plane,
)
from ..workspace import Workspace
from .explain import VERB
from .report_network import NAMES
from .search_start import histories, start_fps


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure of the page."""

    title: str
    text: str
    """What is to be seen."""
    svg: str
    paper: bool | int = False
    """Whether its colours need a white ground."""


def profiled(stages: Stages) -> str | None:
    """Return the file of the table that was profiled last."""
    return stages["profile"]["table"] if "profile" in stages else None


def thinning_figure(workspace: Workspace, thin: Thinned) -> Figure:
    """Draw the way of the last thinning on the plane of frame rate and what is lost."""
    trials, lost = [], 0.0
    for row in read_ledger(workspace.ledger):
        after = lost + row.ap_drop
        trials.append(Trial(row.fps, after, f"{row.move} S{row.stage}", row.chosen))
        lost = after if row.chosen else lost
    start = start_fps(workspace, thin)
    return draw_plane(start, trials, thin.target_fps, thin.measured_fps, thin.ap_drop_by)


def thinning_charts(workspace: Workspace, thin: Thinned | None) -> list[Chart]:
    """Return the way to the target, and how important the positions became in training."""
    charts = []
    if thin is not None and workspace.ledger.exists():
        trials = read_ledger(workspace.ledger)
        kinds = [row.move for row in trials if row.chosen]
        words = "; ".join(f"{kind} {VERB[kind]}" for kind in dict.fromkeys(kinds) if kind in VERB)
        text = (
            f"{len(kinds)} moves of {len(trials)} that were scored, each the one that loses least "
            f"for the frame rate it gains, but for those that adjust to the target in the end. "
            f"{words}."
        )
        if len(kinds) < thin.steps:
            text = f"Found by a study (thin/study.csv). After it: {text}"
        title = "The way to the target"
        charts.append(Chart(title, text, page_svg(thinning_figure(workspace, thin), "way", title)))
    return charts + _importance_chart(workspace)


def _importance_chart(workspace: Workspace) -> list[Chart]:
    path = workspace.supernet / WEIGHTS
    if not path.exists():
        return []
    space = SearchSpace.from_json(read_info(path).description, str(path))
    history = histories(workspace, space)
    if not history:
        return []
    found: dict[tuple[int, int], list[float]] = {}
    for _, logits in history:
        for name, value in importances(space, logits).items():
            place = Place.parse(name)
            found.setdefault((place.stage, place.position or 0), []).append(value)
    figure = draw_importance([epoch for epoch, _ in history], found)
    text = (
        "A line for each position of the supernet. The higher it ends, the more the supernet "
        "prefers an operator there to none; thinning deletes low positions first."
    )
    title = "Importance over the supernet's training"
    return [Chart(title, text, page_svg(figure, "importance", title))]


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What the page says of a latency table."""

    conditions: Conditions
    entries: int
    estimated: bool
    error: float | None
    """Median error on networks that it was not calibrated on."""


def table_facts(workspace: Workspace, path: str) -> TableFacts:
    """Return how a table was made and how good it is."""
    table = recorded_table(workspace, path)
    error = table.calibration.held_out_error
    return TableFacts(table.conditions, len(table.rows), table.estimated, error)


def table_charts(workspace: Workspace, path: str | None) -> list[Chart]:
    """Return milliseconds against width, a figure for each stride."""
    if path is None:
        return []
    curves = block_curves(recorded_table(workspace, path))
    return [
        Chart("", "", page_svg(draw_blocks(stride, found, NAMES), f"table{stride}", f"{stride} px"))
        for stride, found in curves.items()
    ]


def fleet_charts(fleet: Sequence[tuple[str, Result | None]]) -> list[Chart]:
    """Return AP against frame rate of the members whose accuracy is known."""
    points = [
        (name, float(fps), float(ap))
        for name, of in fleet
        for fps, ap in [((of or {}).get("deployed_fps"), (of or {}).get("ap"))]
        if isinstance(fps, float) and isinstance(ap, float)
    ]
    if not points:
        return []
    title = "Accuracy and frame rate"
    counts = [int(str(of["ap_images"])) for _, of in fleet if of and of.get("ap_images")]
    some = f" ({min(counts)} images of it)" if counts else ""
    text = f"A point for each network, measured as it is deployed; AP on the val split{some}."
    return [Chart(title, text, page_svg(draw_members(points), "fleet", title))]


def training_charts(workspace: Workspace, another: bool) -> list[Chart]:
    """Return losses, and AP where it was evaluated meanwhile, of every training.

    That of a detector is `another` where another network was thinned since.
    """
    charts = []
    for title, folder in (
        ("Backbone", workspace.pretrain),
        ("Supernet", workspace.supernet),
        ("Elastic supernet", workspace.elastic),
        ("Another detector" if another else "Detector", workspace.train),
    ):
        path = folder / WEIGHTS
        if not path.exists():
            continue
        history = read_info(path).history
        for what, figure in (("loss", draw_losses(history)), ("AP", draw_ap(history))):
            if figure is not None:
                name = f"{title}: {what}"
                svg = page_svg(figure, name.lower().replace(": ", "-").replace(" ", "-"), name)
                charts.append(Chart(name, f"{len(history)} epochs.", svg))
    return charts
