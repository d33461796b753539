"""DETR's family: DETR, SAM-DETR and their decoding; losses and MTKD are in `supernet.train`."""

from .detr import Detr, Host
from .family import DetrArchitecture

__all__ = ["Detr", "DetrArchitecture", "Host"]
