"""Samples of maps at points between their cells; outside a map they are zero.

Shape suffixes: B batch, Q queries, D channels, H points, G maps, R = 7 cells of a region's side.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .tokens import Tokens

REGION = 7


def cut(memory: Tokens, boxes_BQ4: Tensor, ratio_B2: Tensor) -> Tensor:
    """Return regions of the map, [B * Q, D, 7, 7]: RoIAlign with one sample a bin, by grid_sample.

    Samples outside the map are zero.
    """
    B, _, D = memory.x_BND.shape
    Q = boxes_BQ4.shape[1]
    h, w = memory.cells
    map_BDhw = memory.x_BND.transpose(1, 2).reshape(B, D, h, w)
    bins = (torch.arange(REGION, device=boxes_BQ4.device) + 0.5) / REGION - 0.5
    boxes = boxes_BQ4 * torch.cat([ratio_B2, ratio_B2], 1)[:, None]
    x_BQR = boxes[..., :1] + boxes[..., 2:3] * bins
    y_BQR = boxes[..., 1:2] + boxes[..., 3:] * bins
    grid = torch.stack(
        [
            x_BQR[:, :, None].expand(-1, -1, REGION, -1),
            y_BQR[..., None].expand(-1, -1, -1, REGION),
        ],
        -1,
    )
    grid = 2 * grid.reshape(B, Q * REGION, REGION, 2) - 1
    cuts = F.grid_sample(map_BDhw, grid, align_corners=False)
    return cuts.view(B, D, Q, REGION, REGION).transpose(1, 2).flatten(0, 1)


def sample(regions: Tensor, points_GH2: Tensor) -> Tensor:
    """Return samples at points of -1 to 1 in regions [G, D, 7, 7], as [G, H, D]."""
    found = F.grid_sample(regions, points_GH2[:, :, None], align_corners=False)
    return found[..., 0].transpose(1, 2)


def emit_cut(graph: GraphWriter, memory: Value, boxes: Value, cells: tuple[int, int]) -> Value:
    """Write `cut` for one image."""
    _, _, D = memory.shape
    Q = boxes.shape[1]
    h, w = cells
    image = graph.reshape(graph.swap(memory), 1, D, h, w)
    bins = graph.const(((np.arange(REGION) + 0.5) / REGION - 0.5).astype(np.float32))
    cx, cy, bw, bh = graph.split(boxes, 2, (1,) * 4)
    x = graph.reshape(graph.add(cx, graph.binary("Mul", bw, bins)), Q, 1, REGION, 1)
    y = graph.reshape(graph.add(cy, graph.binary("Mul", bh, bins)), Q, REGION, 1, 1)
    shape = (Q, REGION, REGION, 1)
    wide = [graph.op("Expand", [part, graph.ints(*shape)], shape) for part in (x, y)]
    grid = graph.reshape(graph.concat(wide, 3), 1, Q * REGION, REGION, 2)
    grid = graph.binary("Sub", graph.add(grid, grid), graph.scalar(1.0))
    cuts = graph.reshape(emit_sample(graph, image, grid), D, Q, REGION, REGION)
    return graph.transpose(cuts, 1, 0, 2, 3)


def emit_sample(graph: GraphWriter, image: Value, grid: Value) -> Value:
    """Write samples at points of -1 to 1 [B, R, S, 2] of maps [B, D, h, w], as [B, D, R, S]."""
    B, D, _, _ = image.shape
    shape = (B, D, grid.shape[1], grid.shape[2])
    # Bilinear is the default mode, by whichever name: "linear" from opset 20 on, which OpenVINO
    # does not know before 2026.3, "bilinear" before.
    return graph.op("GridSample", [image, grid], shape, padding_mode="zeros", align_corners=0)
