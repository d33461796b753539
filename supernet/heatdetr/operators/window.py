"""WMSA_bn and SWMSA_bn: attention inside 7x7 windows, Linear-BN instead of LayerNorm.

Swin's rule with DFFT's key width of 16 (spec section 3). Padding to whole windows happens after
the projection, so that it enters neither the BN statistics nor the convolution MACs.
Shape suffixes: B batch, D channels, H/W map cells, G windows, N heads, T = 49 tokens, K key width.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.folding import conv_from, with_factor
from ...graph.nodes import Array, Value
from ...graph.writer import GraphWriter
from .base import Operator, same_shape
from .convbn import ConvBN, DropPath, FeedForward, conv_params
from .cutting import Streams, attention_scales, copy_attention, expand
from .entries import Entry, Macs

WINDOW = 7
TOKENS = WINDOW * WINDOW
SHIFT = 3
KEY = 16
VALUE = 32
HEAD = 2 * KEY + VALUE
MASKED = -100.0

MAX_MERGED_BIAS = 4_000_000
"""Largest merged bias + mask constant, in numbers; above it they stay two additions."""


def padded(side: int) -> int:
    """Return the side padded up to whole windows."""
    return WINDOW * -(-side // WINDOW)


def shift_of(height: int, width: int, shifted: bool) -> int:
    """Return the shift in cells; none where one window covers a side (Swin's rule)."""
    if not shifted or min(padded(height), padded(width)) == WINDOW:
        return 0
    return SHIFT


@lru_cache(maxsize=64)
def attention_mask(height: int, width: int, shift: int) -> Array | None:
    """Return the additive mask [G, T, T] (query, key), or None where nothing is masked.

    A key is masked if it is padding, or, when shifted, if Swin's regions put it apart.
    """
    tall, wide = padded(height), padded(width)
    if shift == 0 and (tall, wide) == (height, width):
        return None
    # The rolled cell r holds the original cell (r + shift) mod side.
    rows = (np.arange(tall) + shift) % tall
    columns = (np.arange(wide) + shift) % wide
    valid = (rows < height)[:, None] & (columns < width)[None, :]
    region = _regions(tall, shift)[:, None] * 3 + _regions(wide, shift)[None, :]
    valid_GT, region_GT = _windows(valid), _windows(region)
    allowed = valid_GT[:, None, :] & (region_GT[:, :, None] == region_GT[:, None, :])
    # A padding query attends to nothing meaningful; its output is cropped away.
    return np.where(allowed, 0.0, MASKED).astype(np.float32)


def _regions(side: int, shift: int) -> Array:
    regions = np.zeros(side, dtype=np.int64)
    if shift:
        regions[-WINDOW:] = 1
        regions[-shift:] = 2
    return regions


def _windows(map_HW: Array) -> Array:
    tall, wide = map_HW.shape
    split = map_HW.reshape(tall // WINDOW, WINDOW, wide // WINDOW, WINDOW)
    return split.transpose(0, 2, 1, 3).reshape(-1, TOKENS)


@lru_cache(maxsize=1)
def relative_index() -> Tensor:
    """Return the index (dy + 6) * 13 + (dx + 6) into the bias table, [T query, T key]."""
    y, x = (grid.ravel() for grid in np.indices((WINDOW, WINDOW)))
    dy = y[:, None] - y[None, :] + WINDOW - 1
    dx = x[:, None] - x[None, :] + WINDOW - 1
    return torch.from_numpy(dy * (2 * WINDOW - 1) + dx)  # on the CPU, wherever modules are built


class WindowBlock(nn.Module):
    """Window attention and FFN, each with a skip."""

    def __init__(self, d: int, shifted: bool) -> None:
        """Build the block; it starts as the identity."""
        super().__init__()
        self.heads = d // VALUE
        self.shifted = shifted
        self.qkv = ConvBN(d, self.heads * HEAD)
        self.bias = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, self.heads))
        self.proj = ConvBN(d, d).zero_init()
        self.ffn = FeedForward(d)
        self.drop_path = DropPath()
        # A CUDA graph holds no copies from the host: index and masks stay on the device.
        self.index: Tensor
        self.register_buffer("index", relative_index(), persistent=False)
        self._masks: dict[object, Tensor] = {}

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Attend in windows, project, feed forward."""
        attended = self.proj(F.hardswish(self.attend(self.qkv(x_BDHW))))
        x_BDHW = x_BDHW + self.drop_path(attended)
        return x_BDHW + self.drop_path(self.ffn(x_BDHW))  # type: ignore[no-any-return]

    def position_bias(self) -> Tensor:
        """Return the relative position bias per head."""
        return self.bias[self.index].permute(2, 0, 1)

    def mask(self, height: int, width: int, shift: int, like: Tensor) -> Tensor | None:
        """Return the additive mask [G, 1, T, T] with the dtype of `like`, on its device."""
        mask_GTT = attention_mask(height, width, shift)
        if mask_GTT is None:
            return None
        if torch.compiler.is_compiling():
            return torch.from_numpy(mask_GTT).to(like)[:, None]
        key = (height, width, shift, like.dtype, like.device)
        if key not in self._masks:
            with torch.inference_mode(False):  # it may be used in training later
                self._masks[key] = torch.from_numpy(mask_GTT).to(like.device, like.dtype)[:, None]
        return self._masks[key]

    def attend(self, qkv_BCHW: Tensor) -> Tensor:
        """Return the attended values [B, D, H, W] of the projected map."""
        B = qkv_BCHW.shape[0]
        H, W = map(int, qkv_BCHW.shape[2:])  # numbers also where a graph is traced
        N, shift = self.heads, shift_of(H, W, self.shifted)
        tall, wide = padded(H), padded(W)
        # Channels innermost, as training keeps them, forth and back.
        x = F.pad(qkv_BCHW.permute(0, 2, 3, 1), (0, 0, 0, wide - W, 0, tall - H))
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        rows, columns = tall // WINDOW, wide // WINDOW
        x = x.view(B, rows, WINDOW, columns, WINDOW, N, HEAD).permute(0, 1, 3, 5, 2, 4, 6)
        x = x.reshape(B, rows * columns, N, TOKENS, HEAD)
        q, k, v = torch.split(x, [KEY, KEY, VALUE], 4)
        scores = (q * KEY**-0.5) @ k.transpose(3, 4) + self.position_bias()
        mask_G1TT = self.mask(H, W, shift, scores)
        if mask_G1TT is not None:
            scores = scores + mask_G1TT
        out = scores.softmax(-1) @ v
        out = out.view(B, rows, columns, N, WINDOW, WINDOW, VALUE).permute(0, 1, 4, 2, 5, 3, 6)
        out = out.reshape(B, tall, wide, N * VALUE)
        if shift:
            out = torch.roll(out, (shift, shift), (1, 2))
        cropped: Tensor = out[:, :H, :W].permute(0, 3, 1, 2)
        return cropped

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the deployed block: q's scale folded into its rows, bias and mask constant."""
        B, d, H, W = x.shape
        N, shift = self.heads, shift_of(H, W, self.shifted)
        tall, wide = padded(H), padded(W)
        rows, columns = tall // WINDOW, wide // WINDOW
        # Channels last: runtimes keep them so around 1x1 convolutions, and windows are then runs.
        q, k, v = (
            self._emit_windows(graph, graph.conv(x, part), tall, wide, shift)
            for part in self._parts()
        )
        scores = graph.matmul(q, graph.swap(k))
        for term in self._constants(H, W, shift, merge=B == 1):
            if len(term) > 1 and B > 1:  # one for each window, and the images share it
                scores = graph.reshape(scores, B, rows * columns, N, TOKENS, TOKENS)
            scores = graph.add(scores, graph.const(term))
        if B > 1:
            scores = graph.reshape(scores, B * rows * columns, N, TOKENS, TOKENS)
        out = graph.matmul(graph.unary("Softmax", scores, axis=-1), v)
        out = graph.reshape(out, B * rows, columns, N, WINDOW, WINDOW, VALUE)
        out = graph.reshape(graph.transpose(out, 0, 3, 1, 4, 2, 5), B, tall, wide, d)
        for axis in (1, 2) if shift else ():
            out = graph.roll(out, axis, shift)
        for axis, (side, whole) in enumerate(((H, tall), (W, wide)), 1):
            if side != whole:
                out = graph.slice(out, axis, 0, side)
        out = graph.transpose(out, 0, 3, 1, 2)
        projected = graph.conv(graph.unary("HardSwish", out), self.proj)
        x = graph.add(x, projected)
        return graph.add(x, self.ffn.emit(graph, x))

    def _emit_windows(
        self, graph: GraphWriter, y: Value, tall: int, wide: int, shift: int
    ) -> Value:
        """Return a projected map as windows [G, N, T, channels of a head]."""
        B, channels, _, _ = y.shape
        N, rows, columns = self.heads, tall // WINDOW, wide // WINDOW
        y = graph.pad_right_bottom(graph.transpose(y, 0, 2, 3, 1), tall, wide)
        for axis in (1, 2) if shift else ():
            y = graph.roll(y, axis, -shift)
        y = graph.reshape(y, B * rows, WINDOW, columns, WINDOW, N, channels // N)
        y = graph.transpose(y, 0, 2, 4, 1, 3, 5)
        return graph.reshape(y, B * rows * columns, N, TOKENS, channels // N)

    def _parts(self) -> list[nn.Conv2d]:
        """Return q's, k's and v's convolution, of a folded one's rows; q's has softmax's scale."""
        qkv = self.qkv
        assert isinstance(qkv, nn.Conv2d) and qkv.bias is not None, "fold() first"
        rows = torch.arange(qkv.out_channels).view(self.heads, HEAD)
        parts = []
        for some in torch.split(rows, [KEY, KEY, VALUE], 1):
            index = some.flatten()
            part = conv_from(qkv.weight[index], qkv.bias[index], 1, 1)
            part.heat_name = str(getattr(qkv, "heat_name", ""))  # type: ignore[assignment]
            parts.append(part)
        return [with_factor(parts[0], KEY**-0.5), *parts[1:]]

    def _constants(self, height: int, width: int, shift: int, *, merge: bool) -> list[Array]:
        bias_1NTT: Array = self.position_bias().detach().cpu().numpy()[None]
        mask = attention_mask(height, width, shift)
        if mask is None:
            return [bias_1NTT]
        mask_G1TT = mask[:, None]
        if merge and mask.shape[0] * bias_1NTT.size <= MAX_MERGED_BIAS:
            return [bias_1NTT + mask_G1TT]
        return [bias_1NTT, mask_G1TT]


def _macs(entry: Entry) -> Macs:
    d = entry.d_in
    cells = padded(entry.h) * padded(entry.w)
    return Macs(11 * d * d * entry.h * entry.w, 147 * d * cells // 2)


def _params(entry: Entry) -> int:
    d = entry.d_in
    heads = d // VALUE
    qkv = conv_params(d, heads * HEAD, 1)
    table = (2 * WINDOW - 1) ** 2 * heads
    return qkv + table + conv_params(d, d, 1) + FeedForward.params(d)


def _inherit(old: WindowBlock, new: WindowBlock, streams: Streams) -> None:
    def rows(heads: Tensor) -> Tensor:
        return expand(heads, HEAD)

    heads = copy_attention(old, new, streams, value=VALUE, rows=rows)
    new.bias.copy_(old.bias[:, heads])


WMSA = Operator(
    build=lambda entry: WindowBlock(entry.d_in, shifted=False),
    macs=_macs,
    params=_params,
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    hidden=4,
    letter="W",
    reduction="WMR",
    inherit=_inherit,
    scales=attention_scales,
)
SWMSA = replace(
    WMSA,
    build=lambda entry: WindowBlock(entry.d_in, shifted=True),
    letter="S",
    reduction="SR",
)
