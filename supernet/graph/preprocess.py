"""Normalisation of the image: the first nodes of every network's graph.

Shape suffixes: B batch, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .nodes import Value
from .writer import GraphWriter

MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)


class Preprocess(nn.Module):
    """uint8 RGB images [B, H, W, 3] to normalised maps [B, 3, H, W]."""

    def forward(self, image_BHW3: Tensor) -> Tensor:
        """Return (image / 255 - mean) / std, channels first."""
        mean = torch.tensor(MEAN_RGB, device=image_BHW3.device)
        inverse_std = 1.0 / torch.tensor(STD_RGB, device=image_BHW3.device)
        return ((image_BHW3.float() - mean) * inverse_std).permute(0, 3, 1, 2).contiguous()

    def emit(self, graph: GraphWriter, image: Value) -> Value:
        """Write Cast, Sub, Mul, Transpose."""
        with graph.full_precision():
            x = graph.op("Cast", [image], image.shape, to=1)
            x = graph.transpose(x, 0, 3, 1, 2)
            mean = np.array(MEAN_RGB, dtype=np.float32).reshape(1, 3, 1, 1)
            std = np.array(STD_RGB, dtype=np.float32).reshape(1, 3, 1, 1)
            x = graph.binary("Sub", x, graph.const(mean))
            x = graph.binary("Mul", x, graph.const((1.0 / std).astype(np.float32)))
        return graph.working(x)
