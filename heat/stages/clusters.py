"""ACT in exported graphs: a calibrated bound on its clusters, and where it cannot run."""

import sys
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from deploy.form import Form
from supernet.attention import ActAttention
from supernet.attention.act import Seen
from supernet.errors import UserError
from supernet.letterbox import Image, letterbox
from supernet.network import Network

COVERED = 0.95
"""Share of the clusterings of the calibration that stay below the bound."""


def check_attention(network: Network, form: Form) -> None:
    """Refuse deploy formats that do not suit the attention of a network."""
    if _cores(network) and form.checked_in == "openvino" and form.precision != "f32":
        raise UserError(
            f"--precision {form.precision}: OpenVINO would compute ACT's hash keys in it too, and "
            "they would overflow: --precision f32, or --format onnx"
        )
    network.check_format(form.precision, raw=form.raw, dynamic_batch=form.dynamic_batch)


class Clusters(TypedDict):
    """What the card states of ACT's clusters."""

    bounds: list[int | None]
    """Most clusters of each layer in the graph."""
    share: list[float]
    """Clusters per token, by layer."""
    overflows: int
    """Clusterings of the calibration that have more clusters than the bound."""
    clusterings: int
    images: int


@torch.no_grad()
def bound_clusters(network: Network, images: Sequence[Image]) -> Clusters | None:
    """Bound ACT's clusters where nothing does yet; return what the card states of them.

    The bound of each layer is what suffices for 95 % of the clusterings on the images. What went
    beyond is counted: there neighbours were merged.
    """
    cores = _cores(network)
    if not cores:
        return None
    size = network.architecture.input_size
    _run(network, cores, images, size)
    for core in (core for core in cores if core.most is None):
        core.most = core.seen.bound(COVERED)
    network.record_clusters([core.most for core in cores if core.most is not None])
    _run(network, cores, images, size)
    over = sum(core.seen.overflows for core in cores)
    groups = sum(core.seen.groups for core in cores)
    if over:
        print(
            f"ACT: {over} of {groups} clusterings have more clusters than the graph holds; there "
            "neighbours are merged",
            file=sys.stderr,
        )
    return {
        "bounds": [core.most for core in cores],
        "share": [round(core.seen.share, 4) for core in cores],
        "overflows": over,
        "clusterings": groups,
        "images": len(images),
    }


def _cores(network: Network) -> list[ActAttention]:
    return [part for part in network.modules() if isinstance(part, ActAttention)]


def _run(
    network: Network, cores: Sequence[ActAttention], images: Sequence[Image], size: tuple[int, int]
) -> None:
    for core in cores:
        core.seen = Seen()
    for image in images:
        pixels = letterbox(image, size)[0][None]
        network(torch.from_numpy(np.ascontiguousarray(pixels)))
