"""Splits maps into heads and joins them, with channels innermost in memory as in training.

A gradient that comes back in another layout than its map makes BatchNorm several times slower.
Shape suffixes: B batch, C/D channels, H height, W width, N heads, T tokens, E channels of a head.
"""

from torch import Tensor


def heads_of(qkv_BCHW: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [B, N, T, E] of a map that holds the three in a row."""
    B, _, H, W = qkv_BCHW.shape
    parts = qkv_BCHW.permute(0, 2, 3, 1).reshape(B, H * W, -1).chunk(3, -1)
    q, k, v = (part.reshape(B, H * W, heads, -1).transpose(1, 2) for part in parts)
    return q, k, v


def map_of(x_BNTE: Tensor, like_BDHW: Tensor) -> Tensor:
    """Return attention results by heads as a map of the shape of another."""
    B, _, H, W = like_BDHW.shape
    return x_BNTE.transpose(1, 2).reshape(B, H, W, -1).permute(0, 3, 1, 2)
