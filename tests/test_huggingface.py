"""H2 to H4: transformers' DETR as the measure of ours, and cores in transformers' encoders."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from supernet.attention import ActAttention, Attention, EnactAttention, PoolAttention
from supernet.detr import Detr, DetrArchitecture
from supernet.detr.huggingface import (
    HostedAttention,
    from_huggingface,
    swap_encoder_attention,
    to_huggingface,
)
from supernet.errors import UserError
from supernet.graph.preprocess import Preprocess
from tests.toy_detr import shaken

transformers = pytest.importorskip("transformers")

SIZE = (128, 160)


@pytest.fixture(scope="module")
def ours() -> Detr:
    torch.manual_seed(0)
    network = shaken(Detr(DetrArchitecture(input_size=SIZE)))
    assert isinstance(network, Detr)
    return network


def their_detr(dc5: bool = False) -> Any:
    backbone = transformers.ResNetConfig(out_features=["stage4"])
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, num_labels=91
    )
    return transformers.DetrForObjectDetection(config).eval()


def their_rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 32, 64], d_model=64, num_queries=20,
        encoder_hidden_dim=64, encoder_ffn_dim=64, decoder_in_channels=[64] * 3,
        decoder_ffn_dim=64, decoder_layers=1, anchor_image_size=list(SIZE), num_labels=3,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config).eval()


@pytest.fixture(scope="module")
def theirs(ours: Detr) -> Iterator[Any]:
    model = their_detr()
    model.load_state_dict(to_huggingface(ours.state_dict()))
    yield model


def test_h2_nothing_is_lost(ours: Detr) -> None:
    weights = ours.state_dict()
    there = to_huggingface(weights)
    back = from_huggingface(there, weights)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert set(there) == set(their_detr().state_dict())
    other = Detr(DetrArchitecture(input_size=SIZE))
    other.load_state_dict(back, strict=True)
    del there["class_labels_classifier.bias"]
    with pytest.raises(UserError, match="no class_labels_classifier"):
        from_huggingface(there, weights)


@torch.no_grad()
def test_h3_a_padded_batch(ours: Detr, theirs: Any) -> None:
    image = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    pad = torch.zeros(2, *SIZE, dtype=torch.bool)
    pad[1, 96:] = True
    pad[1, :, 128:] = True
    expected = theirs(pixel_values=Preprocess()(image), pixel_mask=(~pad).long())
    logits, boxes = ours(image, pad)
    assert (logits - expected.logits).abs().max() <= 1e-4
    assert (boxes - expected.pred_boxes).abs().max() <= 1e-4


@pytest.mark.parametrize("build", [their_detr, their_rt_detr])
@torch.no_grad()
def test_h4_exact_cores_change_nothing(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    x = torch.rand(2, 3, *SIZE)
    mask = torch.ones(2, *SIZE, dtype=torch.long)
    mask[1, :, 96:] = 0
    extra = {"pixel_mask": mask} if build is their_detr else {}
    before = model(pixel_values=x, **extra)
    decoder = {n: type(m) for n, m in model.named_modules() if "decoder" in n}
    count = swap_encoder_attention(model, lambda width, head: Attention())
    assert count == (6 if build is their_detr else 1)
    after = model(pixel_values=x, **extra)
    assert (before.logits - after.logits).abs().max() <= 1e-6
    assert (before.pred_boxes - after.pred_boxes).abs().max() <= 1e-6
    assert decoder == {n: type(m) for n, m in model.named_modules() if "decoder" in n}


@pytest.mark.parametrize("build", [their_detr, their_rt_detr])
@torch.no_grad()
def test_other_cores_run_in_their_encoders(build: Any) -> None:
    for make in (
        lambda width, head: ActAttention(head),
        lambda width, head: EnactAttention(width),
        lambda width, head: PoolAttention(3),
    ):
        model = build()
        swap_encoder_attention(model, make)
        found = model(pixel_values=torch.rand(1, 3, *SIZE))
        assert torch.isfinite(found.logits).all()
        hosts = [m for m in model.modules() if isinstance(m, HostedAttention)]
        assert hosts and all(type(h.core) is not Attention for h in hosts)


def test_models_without_such_attention_are_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no self-attention"):
        swap_encoder_attention(nn.Sequential(), lambda width, head: Attention())
