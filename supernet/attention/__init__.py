"""Cores of attention layers: exact, and those that do less. See `exact.Attention`."""

from .act import ActAttention
from .enact import EnactAttention, PoolAttention
from .exact import Attention

__all__ = ["ActAttention", "Attention", "EnactAttention", "PoolAttention"]
