"""Writes bundles of untrained networks."""

from pathlib import Path

from deploy.export import Exported, export_bundle
from deploy.form import Form, Format
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image


def export(network: Detector, folder: Path, images: list[Image], format: Format) -> Exported:
    return export_bundle(
        network, folder, Form(format=format), names=["a", "b", "c"], images=images,
        facts={"trained": False, "target_fps": None},
    )  # fmt: skip
