"""The objects of one training image, as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Objects of one image: boxes in pixels of the network input [N, 4], class indices [N]."""

    boxes_xyxy: Tensor
    labels: Tensor
    weights: Tensor | None = None
    """How much each counts in the loss, [N]; None for 1 each."""

    def to(self, device: torch.device) -> "GroundTruth":
        """Return the same objects on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return GroundTruth(self.boxes_xyxy.to(device), self.labels.to(device), weights)

    @property
    def shares(self) -> Tensor:
        """The weight of each object, [N]."""
        if self.weights is None:
            return torch.ones(len(self.labels), device=self.labels.device)
        return self.weights
