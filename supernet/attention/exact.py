"""Attention of all queries to all keys: the reference of the other cores, and their interface.

An attention layer is a host (projections, position encoding, heads) around a core. The core works
on keys and values twice: `condense` before they are projected, `attend` after. Queries are scaled
by E ** -0.5 before. A core may add parameters; it never changes those of its host.

Shape suffixes: B batch, N queries, M keys, H heads, E width of a head, D = H * E, G = B * H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph.nodes import Value
from ..graph.writer import GraphWriter


class Attention(nn.Module):
    """Softmax attention over all keys."""

    dropout = 0.0
    """Dropout rate of attention weights, while training."""

    def condense(
        self, k_BMD: Tensor, v_BMD: Tensor, pad_BM: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the inputs of the key and value projections, and the mask of padding."""
        return k_BMD, v_BMD, pad_BM

    def attend(
        self, q_BHNE: Tensor, k_BHME: Tensor, v_BHME: Tensor, pad_BM: Tensor | None = None
    ) -> Tensor:
        """Return the result of every query, [B, H, N, E]; values may have another width."""
        return attend(
            q_BHNE, k_BHME, v_BHME, bias_of(pad_BM, q_BHNE), self.dropout if self.training else 0.0
        )

    def emit_condense(self, graph: GraphWriter, k: Value, v: Value) -> tuple[Value, Value]:
        """Write `condense` for [B, M, D] without padding."""
        return k, v

    def emit_attend(self, graph: GraphWriter, q: Value, k: Value, v: Value) -> Value:
        """Write `attend` for [G, N, E] without padding."""
        return graph.matmul(emit_softmax(graph, q, k), v)

    def macs(self, tokens: int, width: int) -> int:
        """Count multiply-adds of self-attention with its four projections: 4 N D^2 + 2 N^2 D."""
        return 4 * tokens * width**2 + 2 * tokens**2 * width


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend with scaled queries; `bias` is added to the logits."""
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)


def bias_of(pad_BM: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the bias that keeps queries from padding, [B, 1, 1, M].

    It is finite: where all is padding all keys have equal weight, instead of giving NaN.
    """
    if pad_BM is None:
        return None
    bias = torch.zeros(pad_BM.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill(pad_BM, torch.finfo(like.dtype).min / 2)[:, None, None]


def emit_softmax(graph: GraphWriter, q: Value, k: Value) -> Value:
    """Write the weights of scaled queries over keys."""
    return graph.unary("Softmax", graph.matmul(q, graph.swap(k)), axis=-1)
