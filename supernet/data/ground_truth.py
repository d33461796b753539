"""The objects of one training image, as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Objects of one image: boxes in pixels of the network input [N, 4], class indices [N]."""

    boxes_xyxy: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "GroundTruth":
        """Return the same objects on a device."""
        return GroundTruth(self.boxes_xyxy.to(device), self.labels.to(device))
