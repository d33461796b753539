"""Bridges to transformers: keys of its DETR, and ACT or ENACT in the encoders of its models.

Nothing here imports transformers: keys are text, and attention is recognised by its shape.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..errors import UserError

_RENAMED = (
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.", r"model.\1.layers.\2."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear([12])\.", r".mlp.fc\1."),
    (r"transformer\.decoder\.norm\.", "model.decoder.layernorm."),
    (r"query_embed\.", "model.query_position_embeddings."),
    (r"input_proj\.", "model.input_projection."),
    (r"class_embed\.", "class_labels_classifier."),
    (r"bbox_embed\.", "bbox_predictor."),
)
_NORMS = {
    "encoder": {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
    "decoder": {
        "norm1": "self_attn_layer_norm",
        "norm2": "encoder_attn_layer_norm",
        "norm3": "final_layer_norm",
    },
}
_BODY = "backbone.0.body."
_THEIR_BODY = "model.backbone.model."


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of DETR under the keys of transformers' `DetrForObjectDetection` (v5)."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        if ".in_proj_" in key:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[_renamed(key.replace(".in_proj_", f".{letter}_proj."))] = part.clone()
        else:
            found[_renamed(key)] = value
    return found


def from_huggingface(
    weights: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights of transformers' DETR under the keys of `like`, a `Detr`'s.

    Raises `UserError` naming the first key that is missing.
    """
    found: dict[str, Tensor] = {}
    for key in like:
        names = [_renamed(key)]
        if ".in_proj_" in key:
            names = [_renamed(key.replace(".in_proj_", f".{letter}_proj.")) for letter in "qkv"]
        missing = [name for name in names if name not in weights]
        if missing:
            raise UserError(f"the weights of transformers have no {missing[0]}: another backbone?")
        found[key] = torch.cat([weights[name] for name in names])
    return found


def _renamed(key: str) -> str:
    if key.startswith(_BODY):
        return _THEIR_BODY + _body(key.removeprefix(_BODY))
    layer = re.match(r"transformer\.(encoder|decoder)\.layers\.\d+\.(norm\d)\.", key)
    if layer:
        key = key.replace(f".{layer[2]}.", f".{_NORMS[layer[1]][layer[2]]}.")
    for pattern, new in _RENAMED:
        key = re.sub(pattern, new, key)
    return key


def _body(key: str) -> str:
    """Return the key of a part of the ResNet."""
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", key)
    if stem:
        return f"embedder.embedder.{kinds[stem[1]]}.{stem[2]}"
    part = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", key)
    assert part is not None, key
    block = f"encoder.stages.{int(part[1]) - 1}.layers.{part[2]}"
    if part[5] is not None:
        return f"{block}.shortcut.{kinds[part[5]]}.{part[6]}"
    return f"{block}.layer.{int(part[4]) - 1}.{kinds[part[3]]}.{part[6]}"


class HostedAttention(nn.Module):
    """Self-attention of a transformers encoder, its projections kept, around a core."""

    def __init__(self, theirs: nn.Module, core: Attention) -> None:
        """Take over the projections of their attention layer."""
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            theirs.get_submodule(f"{letter}_proj") for letter in "qkv"
        )
        self.o_proj = theirs.get_submodule("o_proj")
        self.head_dim: int = theirs.head_dim  # type: ignore[assignment]
        self.core = core
        self.core.dropout = float(getattr(theirs, "attention_dropout", 0.0))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Return what their layer returns: results [B, N, D], and None for the weights."""
        keys = hidden_states
        if position_embeddings is not None:
            keys = hidden_states + position_embeddings
        k, v, pad = self.core.condense(keys, hidden_states, padding_of(attention_mask))
        q, k, v = (
            part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2)
            for part in (self.q_proj(keys), self.k_proj(k), self.v_proj(v))
        )
        read = self.core.attend(q * self.head_dim**-0.5, k, v, pad)
        return self.o_proj(read.transpose(1, 2).flatten(2)), None


def padding_of(mask: Tensor | None) -> Tensor | None:
    """Return which keys are padding, [B, N], from a mask of any of transformers' kinds.

    Masks of four axes are equal in every head and query. Integer and boolean masks mark valid keys,
    those of floats are added to logits.
    """
    if mask is None:
        return None
    if mask.ndim == 4:
        mask = mask[:, 0, 0]
    return mask < -1 if mask.is_floating_point() else mask == 0


def swap_encoder_attention(model: nn.Module, make: Callable[[int, int], Attention]) -> int:
    """Put cores into the self-attention of a transformers model's encoder; return how many.

    `make(width, head_width)` makes each. Works where layers have `self_attn` with q, k, v and o
    projections: DETR, Conditional DETR, RT-DETR, D-FINE. Raises `UserError` where there is none,
    as in models of deformable attention.
    """
    places = [
        name
        for name, module in model.named_modules()
        if name.endswith(".self_attn")
        and "encoder" in name.split(".")
        and "decoder" not in name.split(".")
        and all(hasattr(module, part) for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
        and hasattr(module, "head_dim")
    ]
    if not places:
        raise UserError(f"{type(model).__name__} has no self-attention in an encoder to replace")
    for place in places:
        parent, _, name = place.rpartition(".")
        theirs = model.get_submodule(place)
        width = theirs.get_submodule("q_proj").in_features
        hosted = HostedAttention(theirs, make(width, theirs.head_dim))  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), name, hosted.to(next(theirs.parameters()).device))
    return len(places)
