"""Any network that is trained, judged and deployed: HeatDETR, or one of DETR's family."""

import json
from pathlib import Path

from .detr.detr import Detr, Host
from .detr.family import FAMILY, DetrArchitecture
from .detr.multi_scale import MultiScaleSamDetr
from .detr.sam_detr import SamDetr
from .errors import UserError
from .heatdetr.architecture import PRESETS, Architecture
from .heatdetr.detector import Detector

Network = Detector | Host
AnyArchitecture = Architecture | DetrArchitecture


def build(architecture: AnyArchitecture) -> Network:
    """Return a network with fresh weights."""
    if isinstance(architecture, Architecture):
        return Detector(architecture)
    if architecture.levels > 1:
        return MultiScaleSamDetr(architecture)
    return SamDetr(architecture) if architecture.family == "sam-detr" else Detr(architecture)


def read_architecture(text: str, source: str) -> AnyArchitecture:
    """Read the description of either; raise `UserError` naming what is wrong."""
    try:
        family = "family" in json.loads(text)
    except (ValueError, TypeError):
        family = False
    return (DetrArchitecture if family else Architecture).from_json(text, source)


def find_architecture(name: str) -> AnyArchitecture:
    """Return a preset by name, or what a file describes."""
    if name.endswith(".json"):
        path = Path(name)
        try:
            return read_architecture(path.read_text(encoding="utf-8"), name)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    known: dict[str, AnyArchitecture] = {**PRESETS, **FAMILY}
    if name not in known:
        raise UserError(f"unknown preset {name!r}: one of {', '.join(known)}")
    return known[name]
