"""Where a search began: the whole supernet, its frame rate, and what its training preferred."""

from latency_tables.pricing import Pricing
from supernet.checkpoint import WEIGHTS, read_info
from supernet.errors import TableError
from supernet.heatdetr.place import local_name
from supernet.heatdetr.supernet import SearchSpace

from ..tables import recorded_table
from ..thinning.moves import Logits, State, prior_logits
from ..thinning.thinned import Thinned
from ..workspace import Workspace


def start_fps(workspace: Workspace, thin: Thinned) -> float | None:
    """Return the predicted frame rate of the whole supernet, if its table prices it."""
    whole = State.full(thin.space).architecture(thin.space, _logits(workspace, thin.space))
    try:
        latency = Pricing(recorded_table(workspace, thin.table)).latency(whole)
    except TableError:
        return None
    return 1000.0 / latency.sustained_ms


def histories(workspace: Workspace, space: SearchSpace) -> list[tuple[int, Logits]]:
    """Return the selection logits of every epoch of the supernet's training."""
    path = workspace.supernet / WEIGHTS
    if not path.exists():
        return []
    places = State.full(space).allowed
    return [
        (row["epoch"], {place: tuple(row["r"][local_name(*place)]) for place in places})
        for row in read_info(path).history
        if "r" in row and all(local_name(*place) in row["r"] for place in places)
    ]


def _logits(workspace: Workspace, space: SearchSpace) -> Logits:
    trained = histories(workspace, space)
    return trained[-1][1] if trained else prior_logits(space)
