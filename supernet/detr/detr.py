"""DETR (Carion et al. 2020): backbone, encoder, object queries, decoder; no anchors, no NMS.

Keys are those of the authors' checkpoints, so that their files load strictly. A pretrained one has
`class_embed` rows for COCO's ids 0 to 90 and for no object: 92.

Shape suffixes: B batch, h and w cells, N = h * w tokens, Q queries, K classes, S decoder layers.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..boxes import Detections
from ..errors import UserError
from ..graph.nodes import Value
from ..graph.preprocess import Preprocess
from ..graph.style import GraphStyle
from ..graph.writer import GraphWriter
from .family import DetrArchitecture
from .positions import of_map
from .resnet import ResNet
from .set_decode import SetDecode
from .tokens import Tokens
from .transformer import Decoder, Encoder, Mlp


class Host(nn.Module, ABC):
    """Backbone, projection and encoder: what DETR and SAM-DETR share."""

    offset = 0.0
    """Subtracted from counts of cells in position encodings."""

    def __init__(self, architecture: DetrArchitecture) -> None:
        """Build the common part; subclasses add `transformer.decoder` and heads."""
        super().__init__()
        a = self.architecture = architecture
        resnet = ResNet(a.depth, a.base, dilation=a.dc5, frozen=a.frozen)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": resnet})])
        self.input_proj = self.projection(resnet.widths[-1])
        hidden = a.encoder_hidden or a.hidden
        encoder = Encoder(a.width, a.heads, hidden, a.dropout, a.cores())
        self.transformer = nn.ModuleDict({"encoder": encoder})
        self.decode = SetDecode(a.num_classes, a.input_size, focal=a.family == "sam-detr")

    @property
    def heatdetr(self) -> None:
        """None: it is not a HeatDETR."""

    @property
    def detr(self) -> Self:
        """The network itself."""
        return self

    @property
    def body(self) -> ResNet:
        """The ResNet of the backbone."""
        return self.backbone[0]["body"]  # type: ignore[index,no-any-return]

    @property
    def encoder(self) -> Encoder:
        """The encoder of the transformer."""
        return self.transformer["encoder"]  # type: ignore[return-value]

    def projection(self, channels: int) -> nn.Module:
        """Return a projection of a map of so many channels to the width of tokens."""
        a = self.architecture
        conv = nn.Conv2d(channels, a.width, 1)
        if not a.group_norm:
            return conv
        return nn.Sequential(conv, nn.GroupNorm(min(32, a.width), a.width))

    def tokens(self, image_BHW3: Tensor, pad_BHW: Tensor | None = None) -> Tokens:
        """Return the tokens of uint8 images; `pad` marks padding pixels."""
        x = self.input_proj(self.body(Preprocess()(image_BHW3)))
        return self.tokens_of(x, pad_BHW)

    def tokens_of(self, x_BDhw: Tensor, pad_BHW: Tensor | None = None) -> Tokens:
        """Return the tokens of a projected map."""
        B, D, h, w = x_BDhw.shape
        pad = x_BDhw.new_zeros(B, h, w, dtype=torch.bool)
        if pad_BHW is not None:
            pad = F.interpolate(pad_BHW[:, None].float(), size=(h, w))[:, 0].bool()
        pos = of_map(pad, D, self.offset).to(x_BDhw.dtype)
        flat = None if pad_BHW is None else pad.flatten(1)
        return Tokens(x_BDhw.flatten(2).transpose(1, 2), pos.flatten(1, 2), flat, ((h, w),))

    def encoded(self, tokens: Tokens) -> Tokens:
        """Return the tokens after the encoder."""
        memory = self.encoder(tokens.x_BND, tokens.pos_BND, tokens.pad_BN)
        return replace(tokens, x_BND=memory)

    @abstractmethod
    def decoded(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Return class logits [S, B, Q, K] and boxes cxcywh in shares [S, B, Q, 4] by layer."""

    def forward(self, image_BHW3: Tensor, pad_BHW: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return logits and boxes: of all layers while training, else of the last, [B, Q, ...]."""
        logits, boxes = self.decoded(self.encoded(self.tokens(image_BHW3, pad_BHW)))
        return (logits, boxes) if self.training else (logits[-1], boxes[-1])

    def detect(self, image_BHW3: Tensor) -> list[Detections]:
        """Run and decode; boxes in pixels of the network input."""
        return self.decode(*self(image_BHW3))  # type: ignore[no-any-return]

    def set_drop_path(self, rate: float) -> None:
        """Do nothing: these networks have dropout instead."""

    def class_rows(self) -> Mapping[str, tuple[int, int]]:
        """Return the tensors whose first axis are classes: (1 group of K rows, further rows)."""
        others = 0 if self.decode.focal else 1  # the last row is "no object"
        keys = [key for key in self.state_dict() if key.startswith("class_embed.")]
        return dict.fromkeys(keys, (1, others))

    def check_format(self, precision: str, *, raw: bool, dynamic_batch: bool) -> None:
        """Raise `UserError` for any format but f32 (bf16 in OpenVINO), one image, decoded."""
        if raw or dynamic_batch or precision not in ("f32", "bf16"):
            raise UserError(
                f"{self.architecture.name}: the family of DETR is exported in f32, one image at a "
                "time, decoding included"
            )

    def record_clusters(self, bounds: Sequence[int]) -> None:
        """Keep the bounds on ACT's clusters, by layer, in the architecture."""
        self.architecture = self.architecture.with_(clusters=tuple(bounds))

    def deployed(self) -> Self:
        """Return a copy in evaluation mode."""
        return copy.deepcopy(self).eval()

    def to_onnx(
        self,
        metadata: dict[str, str] | None = None,
        *,
        raw: bool = False,
        style: GraphStyle | None = None,
        padded: bool = False,
        batch: int = 1,
    ) -> onnx.ModelProto:
        """Write the deployed graph, from uint8 image to boxes in pixels.

        With `raw` the outputs are scores [1, Q, K] and boxes cxcywh in shares [1, Q, 4]; those of
        `padded` have a first axis, of one image.
        """
        style = style or GraphStyle()
        if style.precision != "f32" or batch > 1:
            raise UserError(
                f"{self.architecture.name}: the family of DETR is exported in f32, one image at a "
                "time: leave --dynamic-batch out, and --precision f32"
            )
        graph = GraphWriter(style)
        height, width = self.architecture.input_size
        image = graph.input("image", (1, height, width, 3), "uint8")
        logits, boxes = self.emit(graph, image)
        scores = self.decode.emit_scores(graph, logits)
        if raw:
            return graph.model(
                [("scores", scores, "float32"), ("boxes", boxes, "float32")], metadata
            )
        graph.scope("decode")
        found = list(self.decode.emit(graph, scores, boxes))
        if padded:  # all of them are of fixed shapes
            found = [graph.reshape(part, 1, *part.shape) for part in found]
        names, types = ("boxes_xyxy_px", "scores", "labels"), ("float32", "float32", "int64")
        return graph.model(list(zip(names, found, types, strict=True)), metadata)

    def emit_memory(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Write the encoded tokens and their positions, [1, N, D]."""
        graph.scope("backbone")
        x = self.body.emit(graph, Preprocess().emit(graph, image))[-1]
        x, pos = self.emit_tokens(graph, x, self.input_proj)
        graph.scope("encoder")
        return self.encoder.emit(graph, x, pos), pos

    def emit_tokens(
        self, graph: GraphWriter, x: Value, projection: nn.Module
    ) -> tuple[Value, Value]:
        """Write the tokens of a map and their positions, [1, N, D]."""
        conv, norm = projection if isinstance(projection, nn.Sequential) else (projection, None)
        x = graph.conv(x, conv)
        B, D, h, w = x.shape
        x = graph.transpose(graph.reshape(x, B, D, h * w), 0, 2, 1)
        if isinstance(norm, nn.GroupNorm):
            x = emit_group_norm(graph, x, norm)
        pos = graph.const(of_map(torch.zeros(B, h, w, dtype=torch.bool), D, self.offset))
        return x, graph.reshape(pos, B, h * w, D)

    @abstractmethod
    def emit(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Write class logits [1, Q, K] and boxes cxcywh in shares [1, Q, 4]."""


class Detr(Host):
    """DETR with learned object queries and heads shared by the decoder layers."""

    def __init__(self, architecture: DetrArchitecture) -> None:
        super().__init__(architecture)
        a = architecture
        self.transformer["decoder"] = Decoder(
            a.decoder_layers, a.width, a.heads, a.hidden, a.dropout
        )
        self.class_embed = nn.Linear(a.width, a.num_classes + 1)
        self.bbox_embed = Mlp(a.width, a.width, a.width, 4)
        self.query_embed = nn.Embedding(a.queries, a.width)
        for parameter in self.transformer.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def decoder(self) -> Decoder:
        """The decoder of the transformer."""
        return self.transformer["decoder"]  # type: ignore[return-value]

    def decoded(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Return class logits [S, B, Q, K + 1] and boxes [S, B, Q, 4]; the last is no object."""
        query = self.query_embed.weight.expand(len(memory.x_BND), -1, -1)
        x_SBQD = self.decoder(query, memory.x_BND, memory.pos_BND, memory.pad_BN)
        with torch.autocast("cuda" if x_SBQD.is_cuda else "cpu", enabled=False):
            # In bfloat16 sides would be multiples of 1/256 of the image.
            boxes_SBQ4 = self.bbox_embed(x_SBQD.float()).sigmoid()
        return self.class_embed(x_SBQD), boxes_SBQ4

    def emit(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Write class logits [1, Q, K + 1] and boxes cxcywh in shares [1, Q, 4]."""
        memory, pos = self.emit_memory(graph, image)
        graph.scope("decoder")
        query = graph.const(self.query_embed.weight.expand(memory.shape[0], -1, -1))
        x = self.decoder.emit(graph, query, memory, pos)
        graph.scope("head")
        boxes = graph.unary("Sigmoid", self.bbox_embed.emit(graph, x))
        return graph.linear(x, self.class_embed), boxes


def emit_group_norm(graph: GraphWriter, x: Value, norm: nn.GroupNorm) -> Value:
    """Write GroupNorm of tokens [B, N, D]: every group over all tokens."""
    B, N, D = x.shape
    groups = norm.num_groups
    part = graph.reshape(graph.transpose(x, 0, 2, 1), B, groups, N * D // groups)
    ones = graph.const(torch.ones(groups)), graph.const(torch.zeros(groups))
    part = graph.op("InstanceNormalization", [part, *ones], part.shape, epsilon=norm.eps)
    part = graph.transpose(graph.reshape(part, B, D, N), 0, 2, 1)
    scaled = graph.binary("Mul", part, graph.const(norm.weight))
    return graph.add(scaled, graph.const(norm.bias))
