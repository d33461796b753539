"""Multi-task knowledge distillation for ACT (Zheng et al. 2020, section 3.4).

The exact encoder learns its task; the clustered one, which has the same weights, learns to predict
the boxes of the exact one: `L = L_task(exact) + |B_act - stop(B_exact)|`, query by query. Both run
from one pass of the backbone. Afterwards one checkpoint serves every number of hash functions.

Shape suffixes: S decoder layers, B batch, Q queries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import ActAttention, Attention
from ..attention.act import ROUNDS
from ..attention.hashing import BUCKET
from ..detr.detr import Host
from ..detr.transformer import EncoderLayer

Output = tuple[Tensor, Tensor]
"""Logits [S, B, Q, K] and boxes [S, B, Q, 4]."""

SMOOTH = 1e-3
"""Distance, in shares of the image, below which the norm is smoothed: its gradient tends to 0."""


@dataclass(frozen=True, slots=True)
class Branches:
    """The outputs of both encoders."""

    exact: Output
    clustered: Output


@contextmanager
def attending(network: Host, cores: Sequence[Attention]) -> Iterator[None]:
    """Give the encoder's layers other attention cores within a `with` block, without dropout.

    Exact and clustered weights have other shapes: their dropout would draw other numbers, and so
    would all that is drawn after it.
    """
    layers = [layer for layer in network.encoder.layers if isinstance(layer, EncoderLayer)]
    before = [layer.self_attn.core for layer in layers]
    for layer, core in zip(layers, cores, strict=True):
        core.dropout = 0.0
        layer.self_attn.core = core.train(layer.training)
    try:
        yield
    finally:
        for layer, core in zip(layers, before, strict=True):
            layer.self_attn.core = core


def act_cores(
    network: Host,
    rounds: int = ROUNDS,
    *,
    bucket: float = BUCKET,
    most: int | None = None,
    seed: int = 0,
) -> list[Attention]:
    """Return ACT cores for all layers of an encoder, on its device, with hashes of one seed."""
    a = network.architecture
    device = next(network.parameters()).device
    return [
        ActAttention(a.width // a.heads, rounds, bucket=bucket, most=most, seed=seed).to(device)
        for _ in range(a.encoder_layers)
    ]


class Mtkd(nn.Module):
    """Runs a host with both encoders; the host itself, whose weights are trained, is unchanged."""

    def __init__(self, host: Host, cores: Sequence[Attention]) -> None:
        """Take the cores of the clustered encoder, one for each layer."""
        super().__init__()
        self.host, self.cores = host, nn.ModuleList(cores)

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Return logits and boxes of the exact encoder, then of the clustered one."""
        cores = [core for core in self.cores if isinstance(core, Attention)]
        branches = both_branches(self.host, cores, image_BHW3)
        return (*branches.exact, *branches.clustered)


def both_branches(
    network: Host, cores: Sequence[Attention], image_BHW3: Tensor, pad_BHW: Tensor | None = None
) -> Branches:
    """Run the backbone once, and encoder and decoder twice: with exact attention, and `cores`.

    Dropout is the same in both, and none of the encoder's attention weights.
    """
    tokens = network.tokens(image_BHW3, pad_BHW)
    gpu = [image_BHW3.device] if image_BHW3.is_cuda else []
    with torch.random.fork_rng(gpu), attending(network, [Attention() for _ in cores]):
        exact = network.decoded(network.encoded(tokens))
    with attending(network, cores):
        clustered = network.decoded(network.encoded(tokens))
    return Branches(exact, clustered)


def distance(branches: Branches, *, layers: slice = slice(-1, None)) -> Tensor:
    """Return `|B_act - B_exact|` over all queries of an image, by default of the last layer.

    The mean over images and layers. No gradient reaches the exact branch.
    """
    apart = branches.clustered[1][layers] - branches.exact[1][layers].detach()
    return ((apart.square().sum((-1, -2)) + SMOOTH**2).sqrt() - SMOOTH).mean()
