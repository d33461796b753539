"""Networks of `ablations.py`: without SAM, without TCM, and with three levels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supernet.graph.nodes import Array
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Call, Detector
from supernet.heatdetr.operators.channelwise import ChannelBlock
from supernet.heatdetr.operators.convbn import ConvBN
from supernet.heatdetr.operators.decode import Decode, make_anchors


class First(nn.Module):
    """SAM's joint without its coarse input."""

    def __init__(self, align: nn.Module) -> None:
        """Take over the convolution of the original joint."""
        super().__init__()
        self.align = align

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Ignore the coarse map."""
        return self.align(fine)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """TCM's split without TCM: both tasks see the same map."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map twice."""
        return x, x


class WithoutSam(Detector):
    """No semantics from the coarser stage: only the convolutions that set the widths."""

    def __init__(self, architecture: Architecture) -> None:
        """Replace the three joints and their global blocks."""
        super().__init__(architecture)
        for stage in (2, 3, 4):
            fuse = self.units[f"sam{stage}_fuse"]
            self.units[f"sam{stage}_fuse"] = First(fuse.align)  # type: ignore[arg-type]
            self.units[f"sam{stage}_global"] = nn.Identity()


class WithoutTcm(Detector):
    """SCM followed directly by the head, without TCM."""

    def __init__(self, architecture: Architecture) -> None:
        """Replace TCM."""
        super().__init__(architecture)
        self.units["tcm_t1"] = Twice()
        for index in range(architecture.t2_blocks):
            self.units[f"tcm_t2_{index}"] = nn.Identity()


class LevelDecode(Decode):
    """Anchors of three levels, concatenated; one for each cell."""

    def anchors(self, h: int, w: int) -> Array:
        """Return the anchors of strides 16, 32 and 64; the size of the map is not used."""
        height, width = self.image_size
        rows = [
            make_anchors(-(-height // s), -(-width // s), (2 * s, 4 * s), self.offset, s)
            for s in (16, 32, 64)
        ]
        return np.concatenate(rows)


class MultiLevel(Detector):
    """Three levels with TCM and head in common, as RetinaNet has it, in place of SCM's one."""

    def __init__(self, architecture: Architecture) -> None:
        """Add a lateral and a global block for each level."""
        super().__init__(architecture.with_(anchor_sizes=(32, 64)))
        _, _, d3, d4 = architecture.widths
        self.laterals = nn.ModuleList(ConvBN(d, d4) for d in (d3, d4, d4))
        self.mixers = nn.ModuleList(ChannelBlock(d4) for _ in range(3))
        for place in [place for place in self.units if place.startswith("scm_")]:
            del self.units[place]
        self.units["decode"] = LevelDecode(
            (1,), architecture.num_classes, architecture.input_size, architecture.anchor_offset
        )

    def wire(self, call: Call, image: Any) -> Any:
        """Run TCM and head on each level, and concatenate their outputs."""
        _, l2, p3, l4 = self.wire_backbone(call, image)
        l3 = self._wire_sam(call, 4, p3, l4)
        logits, deltas = [], []
        for x, lateral, mixer in zip((l2, l3, l4), self.laterals, self.mixers, strict=True):
            t_cls, t_reg = call("tcm_t1", mixer(lateral(x)))
            for index in range(self.architecture.t2_blocks):
                t_reg = call(f"tcm_t2_{index}", t_reg)
            c, b = call("head", t_cls, t_reg)  # [B, A, K, h, w]
            logits.append(c.flatten(3).transpose(1, 2).flatten(2))
            deltas.append(b.flatten(3).transpose(1, 2).flatten(2))
        return torch.cat(logits, 2)[:, None, :, None], torch.cat(deltas, 2)[:, None, :, None]
