"""SAM-DETR's decoder layer (Zhang et al. 2022): queries are aligned with the tokens' features.

Each query's box is cut from the encoder's map; the most informative point for every head is
sampled from it, and the sample becomes the query of the cross-attention. The paper calls this SAM,
which here is HeatDETR's Semantic-Augmented Module.

Shape suffixes: B batch, Q queries, N tokens, D channels, H heads, R = 7 cells of a region's side.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..attention.exact import attend, bias_of
from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .positions import TEMPERATURE, cell_centres, of_points
from .sampling import REGION, cut, emit_cut, emit_sample, sample
from .tokens import Tokens
from .transformer import FeedForward, Mlp, emit_heads, emit_joined

POINT_WIDTH = 512


class AddedAttention(nn.Module):
    """Self-attention of queries with projections of its own for contents and for positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_content, self.q_position = nn.Linear(width, width), nn.Linear(width, width)
        self.k_content, self.k_position = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BQD: Tensor, position_BQD: Tensor) -> Tensor:
        """Return the results of the queries, [B, Q, D]."""
        B, Q, D = x_BQD.shape
        E = D // self.heads
        q = self.q_content(x_BQD) + self.q_position(position_BQD)
        k = self.k_content(x_BQD) + self.k_position(position_BQD)
        q, k, v = (
            y.view(B, Q, self.heads, E).transpose(1, 2) for y in (q * E**-0.5, k, self.v(x_BQD))
        )
        read = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value, position: Value) -> Value:
        """Write the attention for one image."""
        q = graph.add(graph.linear(x, self.q_content), graph.linear(position, self.q_position))
        k = graph.add(graph.linear(x, self.k_content), graph.linear(position, self.k_position))
        E = x.shape[-1] // self.heads
        q = graph.binary("Mul", q, graph.scalar(E**-0.5))
        q, k, v = (emit_heads(graph, y, self.heads) for y in (q, k, graph.linear(x, self.v)))
        weights = graph.unary("Softmax", graph.matmul(q, graph.swap(k)), axis=-1)
        return graph.linear(emit_joined(graph, graph.matmul(weights, v), self.heads), self.out_proj)


class PointAttention(nn.Module):
    """Cross-attention of one query vector a head; keys are shared by the heads.

    Contents are projected by a linear layer, positions by two with a ReLU between, as in the
    authors' code; their sums are queries and keys, D wide in every head. Values are D / H wide.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_content, self.q_position = nn.Linear(width, width), Mlp(width, width, width)
        self.k_content, self.k_position = nn.Linear(width, width), Mlp(width, width, width)
        self.v, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, content_BQHD: Tensor, position_BQHD: Tensor, memory: Tokens, bias: Tensor | None
    ) -> Tensor:
        """Attend; `bias` [B, H, Q, N] is added to the logits."""
        B, _, H, D = content_BQHD.shape
        q = self.q_content(content_BQHD) + self.q_position(position_BQHD)
        k = self.k_content(memory.x_BND) + self.k_position(memory.pos_BND)
        v = self.v(memory.x_BND).view(B, -1, H, D // H).transpose(1, 2)
        keys = k[:, None].expand(-1, H, -1, -1)
        dropout = self.dropout if self.training else 0.0
        read = attend((q * D**-0.5).transpose(1, 2), keys, v, bias, dropout)
        return self.out_proj(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def emit(
        self,
        graph: GraphWriter,
        content: Value,
        position: Value,
        memory: Value,
        pos: Value,
        bias: Value | None,
    ) -> Value:
        """Write the attention: contents and positions [1, Q, H, D], bias [H, Q, N]."""
        q = graph.add(graph.linear(content, self.q_content), self.q_position.emit(graph, position))
        k = graph.add(graph.linear(memory, self.k_content), self.k_position.emit(graph, pos))
        _, Q, H, D = content.shape
        q = graph.binary("Mul", q, graph.scalar(D**-0.5))
        q = graph.transpose(graph.reshape(q, Q, H, D), 1, 0, 2)
        logits = graph.matmul(q, graph.swap(k))
        if bias is not None:
            logits = graph.add(logits, bias)
        weights = graph.unary("Softmax", logits, axis=-1)
        read = graph.matmul(weights, emit_heads(graph, graph.linear(memory, self.v), H))
        return graph.linear(emit_joined(graph, read, H), self.out_proj)


class AlignerLayer(FeedForward):
    """One layer of SAM-DETR's decoder."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, *, smca: bool = False
    ) -> None:
        """Build it; with `smca` points have scales too, which modulate the cross-attention."""
        super().__init__(width, hidden, dropout)
        self.heads, self.smca = heads, smca
        self.self_attn = AddedAttention(width, heads, dropout)
        self.region = nn.Conv2d(width, width // 4, 1)
        outputs = (4 if smca else 2) * heads
        self.points = Mlp(width // 4 * REGION**2, width, POINT_WIDTH, POINT_WIDTH, outputs)
        nn.init.zeros_(self.points.layers[-1].bias)  # type: ignore[arg-type]
        self.weigh_content = nn.Linear(width, heads * width)
        self.weigh_position = nn.Linear(width, heads * width)
        self.cross_attn = PointAttention(width, heads, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x_BQD: Tensor, boxes_BQ4: Tensor, memory: Tokens, ratio_B2: Tensor) -> Tensor:
        """Return the queries [B, Q, D] after the layer.

        Boxes are cxcywh as shares of the valid image; `ratio` is the valid share of the map.
        """
        B, Q, D = x_BQD.shape
        H = self.heads
        position = of_points(boxes_BQ4[..., :2], D)
        x_BQD = self.norm1(x_BQD + self.dropout(self.self_attn(x_BQD, position)))
        regions = cut(memory, boxes_BQ4, ratio_B2)
        found = self.points(self.region(regions).relu().flatten(1)).view(B, Q, -1)
        shift_BQH2 = found[..., : 2 * H].tanh().view(B, Q, H, 2)
        content = sample(regions, shift_BQH2.view(B * Q, H, 2)).view(B, Q, H, D)
        points = boxes_BQ4[..., None, :2] + boxes_BQ4[..., None, 2:] / 2 * shift_BQH2
        place = of_points(points, D)
        content = content * self.weigh_content(x_BQD).sigmoid().view(B, Q, H, D)
        place = place * self.weigh_position(x_BQD).sigmoid().view(B, Q, H, D)
        bias = bias_of(memory.pad_BN, content)
        if self.smca:
            scales = found[..., 2 * H :].view(B, Q, H, 2)
            near = nearness(points * ratio_B2[:, None, None], scales, memory.cells)
            bias = near if bias is None else near + bias
        x_BQD = self.norm2(x_BQD + self.dropout(self.cross_attn(content, place, memory, bias)))
        return self.norm3(x_BQD + self.dropout(self.feed(x_BQD)))  # type: ignore[no-any-return]

    def emit(
        self,
        graph: GraphWriter,
        x: Value,
        boxes: Value,
        memory: Value,
        pos: Value,
        cells: tuple[int, int],
    ) -> Value:
        """Write the layer for one image without padding: x [1, Q, D], boxes [1, Q, 4]."""
        _, Q, D = x.shape
        H = self.heads
        centre, sides = graph.split(boxes, 2, (2, 2))
        x = graph.layer_norm(
            graph.add(x, self.self_attn.emit(graph, x, emit_points(graph, centre, D))), self.norm1
        )
        regions = emit_cut(graph, memory, boxes, cells)
        flat = graph.unary("Relu", graph.conv(regions, self.region))
        flat = graph.reshape(flat, Q, flat.shape[1] * REGION**2)
        found = self.points.emit(graph, flat)
        shift = graph.unary("Tanh", graph.slice(found, 1, 0, 2 * H))
        grid = graph.reshape(shift, Q, H, 1, 2)
        content = graph.reshape(emit_sample(graph, regions, grid), Q, D, H)
        content = graph.reshape(graph.transpose(content, 0, 2, 1), 1, Q, H, D)
        half = graph.binary("Mul", graph.reshape(sides, 1, Q, 1, 2), graph.scalar(0.5))
        away = graph.binary("Mul", half, graph.reshape(shift, 1, Q, H, 2))
        points = graph.add(graph.reshape(centre, 1, Q, 1, 2), away)
        content, place = (
            graph.binary(
                "Mul",
                part,
                graph.reshape(graph.unary("Sigmoid", graph.linear(x, layer)), 1, Q, H, D),
            )
            for part, layer in (
                (content, self.weigh_content),
                (emit_points(graph, points, D), self.weigh_position),
            )
        )
        near = None
        if self.smca:
            scales = graph.reshape(graph.slice(found, 1, 2 * H, 4 * H), 1, Q, H, 2)
            near = emit_nearness(graph, points, scales, cells)
        read = self.cross_attn.emit(graph, content, place, memory, pos, near)
        x = graph.layer_norm(graph.add(x, read), self.norm2)
        return graph.layer_norm(graph.add(x, self.emit_feed(graph, x)), self.norm3)


def nearness(points_BQH2: Tensor, scales_BQH2: Tensor, cells: tuple[int, int]) -> Tensor:
    """Return -sum s^2 (cells between)^2 / 8 of points to tokens, [B, H, Q, N].

    Points are shares of the map.
    """
    h, w = cells
    place_N2 = cell_centres(cells, points_BQH2.device)
    size = torch.tensor([w, h], dtype=torch.float32, device=points_BQH2.device)
    between = place_N2 - (points_BQH2 * size)[..., None, :]
    return -((scales_BQH2[..., None, :] * between) ** 2).sum(-1).transpose(1, 2) / 8


def emit_points(graph: GraphWriter, points: Value, channels: int) -> Value:
    """Write `of_points` of [..., 2], y then x; sine and cosine by a shift of a quarter turn."""
    half = channels // 2
    step = np.arange(half)
    periods = TEMPERATURE ** (2 * (step // 2) / half)
    factors = graph.const((2 * np.pi / periods).astype(np.float32))
    turns = graph.const((np.pi / 2 * (step % 2)).astype(np.float32))
    last = len(points.shape) - 1
    x, y = graph.split(points, last, (1, 1))
    parts = [
        graph.unary("Sin", graph.add(graph.binary("Mul", part, factors), turns)) for part in (y, x)
    ]
    return graph.concat(parts, last)


def emit_nearness(
    graph: GraphWriter, points: Value, scales: Value, cells: tuple[int, int]
) -> Value:
    """Write `nearness` for one image, [H, Q, N]."""
    _, Q, H, _ = points.shape
    h, w = cells
    y, x = np.meshgrid(np.arange(h) + 0.5, np.arange(w) + 0.5, indexing="ij")
    total = None
    for axis, (place, side) in enumerate(((x, w), (y, h))):
        at = graph.reshape(graph.slice(points, 3, axis, axis + 1), Q, H, 1)
        scale = graph.reshape(graph.slice(scales, 3, axis, axis + 1), Q, H, 1)
        at = graph.binary("Mul", at, graph.scalar(float(side)))
        between = graph.binary("Sub", graph.const(place.reshape(1, 1, -1).astype(np.float32)), at)
        term = graph.binary("Mul", between, scale)
        term = graph.binary("Mul", term, term)
        total = term if total is None else graph.add(total, term)
    assert total is not None
    return graph.transpose(graph.binary("Mul", total, graph.scalar(-1 / 8)), 1, 0, 2)
