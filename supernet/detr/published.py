"""Published DETR checkpoints: `.pth` files in the layout of the authors' code."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..checkpoint import read_state_dict
from ..errors import CheckpointError
from .detr import Detr
from .family import DetrArchitecture

PUBLISHED_CLASSES = 91


def load_published(
    path: Path, architecture: DetrArchitecture, category_ids: Sequence[int] | None = None
) -> Detr:
    """Load a checkpoint strictly; with `category_ids` keep these of its classes, in this order.

    Raises `CheckpointError` naming the keys that differ, or the class that it does not know.
    """
    if architecture.family != "detr":
        raise CheckpointError(f"{path}: published weights are DETR's, not {architecture.family}'s")
    weights = read_state_dict(path)
    rows = weights.get("class_embed.weight")
    classes = PUBLISHED_CLASSES if rows is None else len(rows) - 1
    network = Detr(architecture.with_(num_classes=classes))
    check_keys(path, weights, network.state_dict())
    network.load_state_dict(weights)
    if category_ids is None:
        return network.eval()
    unknown = [category for category in category_ids if not 0 <= category < classes]
    if unknown:
        raise CheckpointError(
            f"{path} knows the category ids 0 to {classes - 1}, the data has {unknown[0]}: "
            "published weights go with COCO's own ids"
        )
    fewer = Detr(architecture.with_(num_classes=len(category_ids)))
    chosen = [*category_ids, classes]
    for key in ("class_embed.weight", "class_embed.bias"):
        weights[key] = weights[key][chosen]
    fewer.load_state_dict(weights)
    return fewer.eval()


def check_keys(path: Path, weights: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise `CheckpointError` naming keys that are missing, left over, or of another shape."""
    wrong = []
    for what, keys in (
        ("missing", own.keys() - weights.keys()),
        ("left over", weights.keys() - own.keys()),
        (
            "of another shape",
            {key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape},
        ),
    ):
        if keys:
            first = ", ".join(sorted(keys)[:3])
            wrong.append(f"{len(keys)} {what} ({first}{' ...' if len(keys) > 3 else ''})")
    if wrong:
        raise CheckpointError(
            f"{path} does not fit: keys {'; '.join(wrong)}: another --architecture?"
        )
