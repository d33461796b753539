"""ACT in exported graphs: a bound of its clusters, found on pictures, and where it cannot run."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from deploy.form import Form
from supernet.attention import ActAttention
from supernet.attention.act import Seen
from supernet.detr.detr import Host
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.letterbox import Image, letterbox
from supernet.network import Network

COVERED = 0.95
"""Share of the clusterings of the calibration that stay below the bound."""


def check_attention(network: Network, form: Form) -> None:
    """Refuse forms that the attention of a network cannot have."""
    if _cores(network) and form.checked_in == "openvino" and form.precision != "f32":
        raise UserError(
            f"--precision {form.precision}: OpenVINO would compute ACT's hash keys in it too, and "
            "they would overflow: --precision f32, or --format onnx"
        )
    if not isinstance(network.architecture, Architecture) and (
        form.raw or form.dynamic_batch or form.precision not in ("f32", "bf16")
    ):
        raise UserError(
            f"{network.architecture.name}: the family of DETR is exported in f32, one image at a "
            "time, decoding included"
        )


@torch.no_grad()
def bound_clusters(network: Network, images: Sequence[Image]) -> dict[str, Any] | None:
    """Bound ACT's clusters where nothing does yet; return what the card says of them.

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
    if isinstance(network, Host):
        bounds = tuple(core.most for core in cores if core.most is not None)
        network.architecture = network.architecture.with_(clusters=bounds)
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


def _cores(network: nn.Module) -> list[ActAttention]:
    return [part for part in network.modules() if isinstance(part, ActAttention)]


def _run(
    network: Network, cores: Sequence[ActAttention], images: Sequence[Image], size: tuple[int, int]
) -> None:
    for core in cores:
        core.seen = Seen()
    for image in images:
        pixels = letterbox(image, size)[0][None]
        network(torch.from_numpy(np.ascontiguousarray(pixels)))
