"""DETR's acceptance checks (H1, H2, H5), E1, its graph, and bad input."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supernet.detr import Detr, DetrArchitecture
from supernet.detr.family import EncoderAttention
from supernet.detr.positions import of_map
from supernet.errors import UserError
from tests.toy_detr import SMALL, graph_differs_by, images, shaken, trainable


def test_h1_parameters() -> None:
    network = Detr(DetrArchitecture())
    assert trainable(network) == 41_302_368
    assert sum(p.numel() for p in network.parameters()) == 41_524_768


def test_e1_enact_adds_257_parameters_a_layer() -> None:
    assert trainable(Detr(DetrArchitecture(attention="enact"))) == 41_303_910
    for attention in ("act", "pool"):
        assert trainable(Detr(DetrArchitecture(attention=attention, window=6))) == 41_302_368


def test_h2_keys_are_those_of_published_checkpoints() -> None:
    keys = Detr(DetrArchitecture()).state_dict()
    for key, shape in {
        "backbone.0.body.conv1.weight": (64, 3, 7, 7),
        "backbone.0.body.bn1.running_var": (64,),
        "backbone.0.body.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "backbone.0.body.layer2.0.downsample.0.weight": (512, 256, 1, 1),
        "backbone.0.body.layer2.0.downsample.1.bias": (512,),
        "input_proj.weight": (256, 2048, 1, 1),
        "transformer.encoder.layers.5.self_attn.in_proj_weight": (768, 256),
        "transformer.encoder.layers.0.norm2.weight": (256,),
        "transformer.decoder.layers.3.multihead_attn.out_proj.bias": (256,),
        "transformer.decoder.layers.0.linear2.weight": (256, 2048),
        "transformer.decoder.layers.0.norm3.bias": (256,),
        "transformer.decoder.norm.weight": (256,),
        "class_embed.weight": (92, 256),
        "bbox_embed.layers.2.weight": (4, 256),
        "query_embed.weight": (100, 256),
    }.items():
        assert keys[key].shape == shape, key
    assert not any("num_batches_tracked" in key or "core" in key for key in keys)
    assert len(keys) == 458


@torch.no_grad()
def test_h5_values_do_not_see_positions() -> None:
    """Only queries and keys change when the positions do."""
    network = Detr(SMALL).eval()
    seen: list[Tensor] = []
    layer = network.encoder.layers[0]
    layer.self_attn.core.condense = lambda k, v, pad: (seen.extend([k, v]), (k, v, pad))[1]  # type: ignore[union-attr,operator]
    tokens = network.tokens(images())
    layer(tokens.x_BND, tokens.pos_BND, None)
    layer(tokens.x_BND, tokens.pos_BND + 1, None)
    k, v, other_k, other_v = seen
    assert torch.equal(v, other_v) and not torch.equal(k, other_k)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """An image beside a larger one, on a map, is what it is alone."""
    network = Detr(SMALL).eval()
    x = torch.randn(1, 32, 3, 5)
    wide = nn.functional.pad(x, (0, 2, 0, 1))
    pad = torch.ones(1, 4, 7, dtype=torch.bool)
    pad[:, :3, :5] = False
    alone = network.decoded(network.encoded(network.tokens_of(x)))
    padded = network.decoded(network.encoded(network.tokens_of(wide, pad)))
    for a, b in zip(alone, padded, strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_positions_go_round_once() -> None:
    pos = of_map(torch.zeros(1, 4, 6, dtype=torch.bool), 8)
    assert pos.shape == (1, 4, 6, 8)
    assert pos[0, 3, :, 0] == pytest.approx(np.sin(2 * np.pi), abs=1e-5)
    assert pos[0, :, 2, 4] == pytest.approx(np.sin(np.pi), abs=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("attention", ["exact", "act", "enact", "pool"])
@pytest.mark.parametrize("dc5", [False, True])
def test_the_graph_is_the_network(runtime: str, attention: EncoderAttention, dc5: bool) -> None:
    architecture = SMALL.with_(attention=attention, window=3, clusters=9, dc5=dc5)
    assert graph_differs_by(shaken(Detr(architecture)), runtime) <= 2e-5


def test_gradients_reach_everything_that_trains() -> None:
    network = Detr(SMALL.with_(frozen=False, attention="enact"))
    logits, boxes = network(images(2))
    assert logits.shape == (2, 2, 7, 6) and boxes.shape == (2, 2, 7, 4)
    (logits.square().sum() + boxes.square().sum()).backward()
    without = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_descriptions_travel() -> None:
    architecture = SMALL.with_(attention="act", clusters=9)
    assert DetrArchitecture.from_json(architecture.to_json()) == architecture
    assert architecture.cells == (3, 5) and architecture.with_(dc5=True).cells == (6, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 34}, "depth 34"),
        ({"width": 30}, "width 30"),
        ({"queries": 0}, "queries 0: a whole number from 1"),
        ({"input_size": (100, 100)}, "multiples of 32"),
        ({"attention": "pool"}, "--window is needed"),
        ({"smca": True}, "SAM-DETR"),
        ({"family": "dino"}, "family 'dino'"),
        ({"attention": "linear"}, "--attention linear"),
    ],
)
def test_bad_descriptions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SMALL.with_(**change)
    with pytest.raises(UserError, match="describes no network"):
        DetrArchitecture.from_json("{}")


def test_boxes_are_float32_in_mixed_precision() -> None:
    """Sides in bfloat16 are multiples of 1/256 of the image between a half and one."""
    net = Detr(SMALL).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits, boxes = net(images())
    assert logits.dtype is torch.bfloat16 and boxes.dtype is torch.float32
    assert torch.equal(boxes, boxes.bfloat16().float()) is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 0}, {"heads": -4}, {"base": 0}, {"queries": 2.5}, {"hidden": -3},
        {"dropout": 5}, {"dropout": float("nan")}, {"window": 0}, {"input_size": (64, 64, 64)},
        {"clusters": (1, 2)}, {"encoder_layers": 10**9}, {"rounds": True},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_no_network_has_are_refused(wrong: dict[str, Any]) -> None:
    """In one line: they were tracebacks where the network was built."""
    with pytest.raises(UserError):
        DetrArchitecture(**wrong)
