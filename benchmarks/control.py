"""Decoders of transformers in HEAT's training: a control for networks of DETR's family.

The backbone, the matcher, the losses, the data and the loop are HEAT's; encoder, decoder and heads
are transformers' `DetrForObjectDetection` or `ConditionalDetrForObjectDetection`, their weights
random and initialised as their authors do.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from supernet.detr.detr import Host
from supernet.detr.family import DetrArchitecture
from supernet.detr.sam_detr import PRIOR
from supernet.detr.tokens import Tokens
from supernet.graph.nodes import Value
from supernet.graph.preprocess import Preprocess
from supernet.graph.writer import GraphWriter

FAR = 1e-5
"""Least distance of a reference point from the border of the image."""


class Stub(nn.Module):
    """Passes a map of HEAT's backbone on as one of transformers'."""

    def forward(self, x_BChw: Tensor, _: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the map and its mask: nothing is padding."""
        return [(x_BChw, x_BChw.new_ones(len(x_BChw), *x_BChw.shape[-2:], dtype=torch.bool))]


class Control(Host):
    """A detector of transformers behind HEAT's backbone."""

    def __init__(self, architecture: DetrArchitecture, detector: nn.Module) -> None:
        """Replace the backbone of a detector of transformers, and initialise the rest."""
        super().__init__(architecture)
        a = architecture
        del self.transformer
        parts: Any = detector.model
        parts.backbone = Stub()
        parts.input_projection, self.input_proj = self.input_proj, nn.Identity()
        for parameter in (*parts.encoder.parameters(), *parts.decoder.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(parts.query_position_embeddings.weight)
        self.detector: Any = detector
        self.moved = a.family == "sam-detr"
        """Whether boxes are relative to reference points, and classes have sigmoids."""
        layers = self.detector.bbox_predictor.layers
        for layer in (*layers, self.detector.class_labels_classifier):
            layer.reset_parameters()
        if self.moved:
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
            nn.init.constant_(
                self.detector.class_labels_classifier.bias, -math.log((1 - PRIOR) / PRIOR)
            )

    def forward(self, image_BHW3: Tensor, pad_BHW: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return logits and boxes: of all layers while training, else of the last, [B, Q, ...]."""
        found = self.detector.model(self.body(Preprocess()(image_BHW3)))
        x_SBQD = found.intermediate_hidden_states
        logits, boxes = self.detector.class_labels_classifier(x_SBQD), self._boxes(x_SBQD, found)
        return (logits, boxes) if self.training else (logits[-1], boxes[-1])

    def _boxes(self, x_SBQD: Tensor, found: Any) -> Tensor:
        boxes: Tensor = self.detector.bbox_predictor(x_SBQD)
        if self.moved:
            at = found.reference_points.transpose(0, 1).clamp(FAR, 1 - FAR).logit()
            boxes = torch.cat([boxes[..., :2] + at, boxes[..., 2:]], -1)
        return boxes.sigmoid()

    def decoded(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Raise `NotImplementedError`: the detector decodes its own tokens."""
        raise NotImplementedError

    def emit(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Raise `NotImplementedError`: a control is not deployed."""
        raise NotImplementedError


def settings(a: DetrArchitecture) -> dict[str, Any]:
    """Return the sizes of a network under the names of transformers."""
    from transformers import ResNetConfig

    stub = ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    return {
        "backbone_config": stub, "use_timm_backbone": False, "auxiliary_loss": True,
        "num_labels": a.num_classes, "num_queries": a.queries, "d_model": a.width,
        "encoder_layers": a.encoder_layers, "decoder_layers": a.decoder_layers,
        "encoder_ffn_dim": a.encoder_hidden or a.hidden, "decoder_ffn_dim": a.hidden,
        "encoder_attention_heads": a.heads, "decoder_attention_heads": a.heads,
        "dropout": a.dropout,
    }  # fmt: skip


def detr(a: DetrArchitecture) -> Control:
    """Return transformers' DETR."""
    from transformers import DetrConfig, DetrForObjectDetection

    detector = DetrForObjectDetection(DetrConfig(**settings(a)))
    return Control(a.with_(family="detr"), detector)


def conditional_detr(a: DetrArchitecture) -> Control:
    """Return transformers' Conditional DETR, which has SAM-DETR's losses."""
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    detector = ConditionalDetrForObjectDetection(ConditionalDetrConfig(**settings(a)))
    return Control(a.with_(family="sam-detr"), detector)


CONTROLS: Mapping[str, Callable[[DetrArchitecture], Control]] = {
    "detr": detr,
    "conditional-detr": conditional_detr,
}
"""Controls by name."""
