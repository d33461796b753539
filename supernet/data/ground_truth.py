"""The objects of one training image, as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Boxes of one image in pixels of the network input."""

    boxes_xyxy: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "GroundTruth":
        """Return it on a device."""
        return GroundTruth(self.boxes_xyxy.to(device), self.labels.to(device))
