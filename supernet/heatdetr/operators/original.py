"""Original (all-pairs) self-attention with Linear-BN, and the paper's token sparsity.

Shape suffixes: B batch, D channels, N heads, E = 32 channels of a head, T tokens, M kept tokens.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.folding import split_conv, with_factor
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .base import Operator, same_shape
from .convbn import ConvBN, FeedForward, conv_params
from .cutting import Streams, attention_scales, copy_attention, copy_linear, rows_by_part
from .entries import Macs
from .heads import heads_of, map_of

HEAD = 32


def kept_tokens(tokens: int, sparsity: float) -> int:
    """Return M = ceil((1 - rho) T), at least 1; exact for rho such as 0.18 in binary floats."""
    return max(1, math.ceil(round((1.0 - sparsity) * tokens, 6)))


class OriginalBlock(nn.Module):
    """Self-attention over all tokens and FFN, no position term.

    With sparsity rho > 0 a 1x1 convolution scores the tokens; the best M go through the block
    and come back as `t + sigma * (block(t) - t)`, the others pass unchanged, so the map stays
    dense (spec section 3).
    """

    def __init__(self, d: int, sparsity: float = 0.0) -> None:
        """Build the block; it starts as the identity."""
        super().__init__()
        self.heads = d // HEAD
        self.sparsity = sparsity
        self.qkv = ConvBN(d, 3 * d)
        self.proj = ConvBN(d, d).zero_init()
        self.ffn = FeedForward(d)
        self.score = nn.Conv2d(d, 1, 1) if sparsity > 0 else None

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Attend, feed forward; on the kept tokens only if sparse."""
        if self.score is None:
            return self._dense(x_BDHW)
        B, D, H, W = x_BDHW.shape
        keep = kept_tokens(H * W, self.sparsity)
        gate_B1T = self.score(x_BDHW).sigmoid().flatten(2)
        gate_B1M, index_B1M = gate_B1T.topk(keep, dim=2)
        tokens_BDT = x_BDHW.flatten(2)
        index_BDM = index_B1M.expand(-1, D, -1)
        kept_BDM = tokens_BDT.gather(2, index_BDM)
        block_BDM = self._dense(kept_BDM[..., None])[..., 0]
        mixed_BDM = kept_BDM + gate_B1M * (block_BDM - kept_BDM)
        return tokens_BDT.scatter(2, index_BDM, mixed_BDM).view(B, D, H, W)

    def _dense(self, x_BDHW: Tensor) -> Tensor:
        q, k, v = self._projected(x_BDHW)
        return self._finish(x_BDHW, (q @ k.transpose(-1, -2)).softmax(-1) @ v)

    def _projected(self, x_BDHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values, [B, N, T, E]."""
        q, k, v = heads_of(self.qkv(x_BDHW), self.heads)
        return q * HEAD**-0.5, k, v

    def _finish(self, x_BDHW: Tensor, mixed_BNTE: Tensor) -> Tensor:
        """Project the attention result, add it, and feed forward."""
        projected = self.proj(F.hardswish(map_of(mixed_BNTE, x_BDHW)))
        x_BDHW = x_BDHW + projected
        return x_BDHW + self.ffn(x_BDHW)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the deployed block with a static number of kept tokens."""
        if self.score is None:
            return self._emit_dense(graph, x)
        B, D, H, W = x.shape
        keep = kept_tokens(H * W, self.sparsity)
        gate = graph.unary("Sigmoid", graph.conv(x, self.score))
        gate, index = graph.op_many(
            "TopK",
            [graph.reshape(gate, B, 1, H * W), graph.ints(keep)],
            [(B, 1, keep)] * 2,
            axis=2,
        )
        index = graph.op("Expand", [index, graph.ints(1, D, 1)], (B, D, keep))
        tokens = graph.reshape(x, B, D, H * W)
        kept = graph.op("GatherElements", [tokens, index], (B, D, keep), axis=2)
        block = self._emit_dense(graph, graph.reshape(kept, B, D, keep, 1))
        change = graph.binary("Sub", graph.reshape(block, B, D, keep), kept)
        mixed = graph.add(kept, graph.binary("Mul", gate, change))
        out = graph.op("ScatterElements", [tokens, index, mixed], (B, D, H * W), axis=2)
        return graph.reshape(out, B, D, H, W)

    def _emit_dense(self, graph: GraphWriter, x: Value) -> Value:
        B, D, H, W = x.shape
        # Three convolutions rather than one and a Split, which OpenVINO executes by copying.
        q, k, v = (
            graph.reshape(graph.conv(x, part), B * self.heads, HEAD, H * W)
            for part in self._parts()
        )
        attention = graph.unary("Softmax", graph.matmul(graph.swap(q), k), axis=-1)
        mixed = graph.reshape(graph.matmul(v, graph.swap(attention)), B, D, H, W)
        return self._emit_finish(graph, x, mixed)

    def _emit_finish(self, graph: GraphWriter, x: Value, mixed: Value) -> Value:
        """Write projection, skip and FFN of the attention result, a map."""
        x = graph.add(x, graph.conv(graph.unary("HardSwish", mixed), self.proj))
        return graph.add(x, self.ffn.emit(graph, x))

    def _parts(self) -> list[nn.Conv2d]:
        """Return q's, k's and v's convolution; q's has softmax's scale."""
        q, k, v = split_conv(self.qkv, 3)
        return [with_factor(q, HEAD**-0.5), k, v]


def macs_of(d: int, cells: int, sparsity: float = 0.0) -> Macs:
    """Multiply-adds of one block of width d."""
    kept = kept_tokens(cells, sparsity) if sparsity > 0 else cells
    scoring = d * cells if sparsity > 0 else 0
    return Macs(12 * d * d * kept + scoring, 2 * kept * kept * d)


def params_of(d: int, sparsity: float = 0.0) -> int:
    """Deployed parameters of one block of width d."""
    scoring = d + 1 if sparsity > 0 else 0
    return conv_params(d, 3 * d, 1) + conv_params(d, d, 1) + FeedForward.params(d) + scoring


def inherit(old: OriginalBlock, new: OriginalBlock, streams: Streams) -> None:
    """Copy a block of a wide network into a narrow one; whole heads are removed."""
    copy_attention(old, new, streams, value=HEAD, rows=rows_by_part(old, HEAD))
    if old.score is not None:
        assert new.score is not None
        copy_linear(old.score, new.score, streams.own)


OPERATOR = Operator(
    build=lambda entry: OriginalBlock(entry.d_in, entry.sparsity),
    macs=lambda entry: macs_of(entry.d_in, entry.h * entry.w, entry.sparsity),
    params=lambda entry: params_of(entry.d_in, entry.sparsity),
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    hidden=4,
    parameters=("sparsity",),
    inherit=inherit,
    scales=attention_scales,
)
