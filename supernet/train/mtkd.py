"""Multi-task knowledge distillation for ACT (Zheng et al. 2020, section 3.4).

The exact encoder learns its task; the clustered one, which has the same weights, learns to place
boxes where the exact one does: `L = L_task(exact) + |B_act - stop(B_exact)|`, slot by slot. Both
run from one pass of the backbone. Afterwards one checkpoint serves every number of rounds.

Shape suffixes: S decoder layers, B batch, Q queries.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..attention import ActAttention, Attention
from ..attention.act import ROUNDS
from ..attention.hashing import BUCKET
from ..detr.detr import Host
from ..detr.transformer import EncoderLayer

Output = tuple[Tensor, Tensor]
"""Logits [S, B, Q, K] and boxes [S, B, Q, 4]."""

SMOOTH = 1e-3
"""Distance, in shares of the image, below which the norm is rounded off to have a gradient of 0."""


@dataclass(frozen=True, slots=True)
class Branches:
    """What both encoders lead to."""

    exact: Output
    clustered: Output


@contextmanager
def attending(network: Host, cores: Sequence[Attention]) -> Iterator[None]:
    """Let the encoder's layers attend by other cores in this block."""
    layers = [layer for layer in network.encoder.layers if isinstance(layer, EncoderLayer)]
    before = [layer.self_attn.core for layer in layers]
    for layer, core in zip(layers, cores, strict=True):
        core.dropout = layer.self_attn.core.dropout
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
    """Return cores of ACT for all layers of an encoder, on its device; the hash is of a seed."""
    a = network.architecture
    device = next(network.parameters()).device
    return [
        ActAttention(a.width // a.heads, rounds, bucket=bucket, most=most, seed=seed).to(device)
        for _ in range(a.encoder_layers)
    ]


def teach(network: Host, cores: Sequence[Attention]) -> None:
    """Let a network return both branches while training: logits and boxes, exact, then clustered.

    `cores` are those of the clustered one, a core for each layer of the encoder.
    """
    network.in_training = partial(_in_training, tuple(cores))


def _in_training(
    cores: Sequence[Attention], network: Host, image_BHW3: Tensor, pad_BHW: Tensor | None
) -> tuple[Tensor, ...]:
    branches = both_branches(network, cores, image_BHW3, pad_BHW)
    return (*branches.exact, *branches.clustered)


def both_branches(
    network: Host, cores: Sequence[Attention], image_BHW3: Tensor, pad_BHW: Tensor | None = None
) -> Branches:
    """Run the backbone once, and what follows twice: exactly, and by `cores`.

    Dropout is the same in both.
    """
    tokens = network.tokens(image_BHW3, pad_BHW)
    gpu = [image_BHW3.device] if image_BHW3.is_cuda else []
    with torch.random.fork_rng(gpu), attending(network, [Attention() for _ in cores]):
        exact = network.decoded(network.encoded(tokens))
    with attending(network, cores):
        clustered = network.decoded(network.encoded(tokens))
    return Branches(exact, clustered)


def distance(branches: Branches, *, layers: slice = slice(-1, None)) -> Tensor:
    """Return `|B_act - B_exact|` over all query slots of an image, by default of the last layer.

    The mean over images and layers. No gradient reaches the exact branch.
    """
    apart = branches.clustered[1][layers] - branches.exact[1][layers].detach()
    return ((apart.square().sum((-1, -2)) + SMOOTH**2).sqrt() - SMOOTH).mean()
