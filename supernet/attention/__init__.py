"""Attention cores: exact, clustered (ACT) and windowed (ENACT, pool). See `exact.Attention`."""

from .act import ActAttention
from .enact import EnactAttention, PoolAttention
from .exact import Attention

__all__ = ["ActAttention", "Attention", "EnactAttention", "PoolAttention"]
