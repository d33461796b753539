"""DETR's family: the host, SAM-DETR, their losses and decoding, and MTKD."""

from .detr import Detr, Host
from .family import DetrArchitecture

__all__ = ["Detr", "DetrArchitecture", "Host"]
