"""The frontier of a search: every network on the way down that answers another target.

A network that is predicted no faster than one before it on the chain answers none, and is left out.
"""

import csv
import io
from dataclasses import asdict, dataclass, fields

from supernet.atomic import write_text
from supernet.counting import count_macs, count_params

from ..workspace import Workspace
from .limits import Pricer
from .search import Chain


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierRow:
    """A network of the chain that is faster than all before it: a row of `frontier.csv`."""

    step: int
    move: str
    fps: float
    ms: float
    ap_drop: float
    """Of the move."""
    lost: float
    """Sum of AP_drop so far."""
    gmacs: float
    params_m: float
    """Millions of parameters."""
    size_mb: float
    widths: str
    blocks: str


def frontier(chain: Chain, prices: Pricer) -> list[FrontierRow]:
    """Return the states of the chain that are faster than all before, with all corrections."""
    rows: list[FrontierRow] = []
    lost = fastest = 0.0
    for index, state in enumerate(chain.states):
        move, drop = "start", 0.0
        chosen = chain.chosen(index)
        if chosen is not None:
            drop = chosen.ap_drop
            position = "" if chosen.move.position is None else f".{chosen.move.position}"
            move = f"{chosen.move.kind} S{chosen.move.stage}{position}"
        elif index:
            move, drop = "study", chain.ap_drop(chain.states[index - 1], state)
        lost += drop
        cost = prices.cost(state)
        if cost.fps <= fastest:
            continue
        fastest = cost.fps
        architecture = state.architecture(chain.space, chain.logits)
        rows.append(
            FrontierRow(
                step=index,
                move=move,
                fps=round(cost.fps, 4),
                ms=round(1000.0 / cost.fps, 4),
                ap_drop=round(drop, 5),
                lost=round(lost, 5),
                gmacs=round(count_macs(architecture).total / 1e9, 4),
                params_m=round(count_params(architecture) / 1e6, 4),
                size_mb=round(cost.size_mb, 3),
                widths=" ".join(map(str, architecture.widths)),
                blocks=" ".join(string or "-" for string in architecture.blocks),
            )
        )
    return rows


def write_frontier(workspace: Workspace, chain: Chain, prices: Pricer, unit: str) -> None:
    """Write `frontier.csv` and its figure."""
    rows = frontier(chain, prices)
    stream = io.StringIO()
    columns = [column.name for column in fields(FrontierRow)]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(workspace.frontier, stream.getvalue())
    from ..views.charts import draw_frontier  # matplotlib: slow to import

    points = [(row.fps, row.lost, row.move) for row in rows]
    draw_frontier(points, unit, workspace.frontier.with_suffix(".svg"))
