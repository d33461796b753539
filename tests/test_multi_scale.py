"""SAM-DETR of several maps, whose encoder's attention is deformable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supernet.detr import DetrArchitecture
from supernet.detr.deformable import POINTS, DeformableAttention
from supernet.detr.family import FAMILY
from supernet.detr.multi_scale import MultiScaleSamDetr, joined, places_of
from supernet.detr.tokens import Tokens
from supernet.errors import UserError
from supernet.network import build
from tests.toy_detr import SMALL, graph_differs_by, images, shaken, trainable

TINY = SMALL.with_(family="sam-detr", levels=3, group_norm=True, decoder_layers=3)
MAPS = ((12, 20), (6, 10), (3, 5))


def moved(network: nn.Module) -> nn.Module:
    """Let boxes and points depend on what they are of, which they do not at the beginning."""
    for name, parameter in network.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.3)
        if "bbox_embed" in name and name.endswith("layers.2.weight"):
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def test_s1_parameters_of_several_maps() -> None:
    assert trainable(build(FAMILY["sam-detr-r50-multi-scale"])) == 54_972_298


def test_maps_are_read_from_coarse_to_fine() -> None:
    six = MultiScaleSamDetr(TINY.with_(decoder_layers=6))
    assert [six.map_of(layer) for layer in range(6)] == [2, 2, 1, 1, 0, 0]
    assert six.architecture.maps == MAPS and six.architecture.cells == (3, 5)


def at(map_hwE: Tensor, x: float, y: float) -> Tensor:
    """Return what lies at a place in cells, by the four cells around it; 0 outside."""
    h, w, E = map_hwE.shape
    found = torch.zeros(E)
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    for column in (left, left + 1):
        for row in (top, top + 1):
            if 0 <= column < w and 0 <= row < h:
                share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                found += share * map_hwE[row, column]
    return found


@torch.no_grad()
def test_deformable_attention_by_hand() -> None:
    """Zhu et al. 2021, Eq. 3, one token and head at a time."""
    maps, width, heads = ((4, 6), (2, 3)), 8, 2
    attention = DeformableAttention(width, heads, len(maps))
    moved(attention)
    nn.init.normal_(attention.sampling_offsets.weight, std=1.0)
    N = sum(h * w for h, w in maps)
    x, q = torch.randn(1, N, width), torch.randn(1, N, width)
    places = places_of(maps, torch.ones(1, len(maps), 2))
    found = attention(q, Tokens(x, x, None, maps), places)[0]
    value = attention.value_proj(x)[0].split([h * w for h, w in maps])
    offsets = attention.sampling_offsets(q)[0].view(N, heads, len(maps), POINTS, 2)
    weights = attention.attention_weights(q)[0].view(N, heads, -1).softmax(-1)
    for token in (0, 7, N - 1):
        heads_read = []
        for head in range(heads):
            read = torch.zeros(width // heads)
            for level, (h, w) in enumerate(maps):
                map_hwE = value[level].view(h, w, heads, -1)[:, :, head]
                for point in range(POINTS):
                    x_, y_ = (
                        places[0, token, level] * torch.tensor([w, h])
                        + offsets[token, head, level, point]
                    ).tolist()
                    read += weights[token, head, level * POINTS + point] * at(map_hwE, x_, y_)
            heads_read.append(read)
        expected = attention.output_proj(torch.cat(heads_read))
        assert (found[token] - expected).abs().max() <= 1e-5


def test_maps_are_joined_and_taken_apart() -> None:
    parts = [
        Tokens(torch.randn(2, h * w, 4), torch.randn(2, h * w, 4), torch.rand(2, h * w) > 0.5,
               ((h, w),))
        for h, w in MAPS
    ]  # fmt: skip
    for one, other in zip(parts, joined(parts).by_map(), strict=True):
        assert one.cells == other.cells and one.pad_BN is not None and other.pad_BN is not None
        assert one.x_BND.equal(other.x_BND) and one.pad_BN.equal(other.pad_BN)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    """What the encoder makes of an image is the same beside padding, in every map."""
    network = moved(MultiScaleSamDetr(TINY))
    assert isinstance(network, MultiScaleSamDetr)
    sides = ((8, 16), (4, 8), (2, 4))
    alone, padded = [], []
    for h, w in sides:
        x = torch.randn(1, 32, h, w)
        pad = torch.ones(1, 2 * h, 2 * w, dtype=torch.bool)
        pad[:, :h, :w] = False
        alone.append(network.tokens_of(x))
        padded.append(network.tokens_of(nn.functional.pad(x, (0, w, 0, h)), pad))
    here = network.encoded(joined(alone))
    there = network.encoded(joined(padded))
    for one, other in zip(here.by_map(), there.by_map(), strict=True):
        (h, w), (_, wide) = one.cells, other.cells
        inner = other.x_BND.view(1, -1, wide, 32)[:, :h, :w].flatten(1, 2)
        assert (one.x_BND - inner).abs().max() <= 1e-4
    boxes = network.decoded(here)[1]
    assert boxes.shape == (3, 1, TINY.queries, 4)
    blank = there.x_BND.masked_fill(there.pad_BN[..., None], 0.0)  # type: ignore[index]
    network.query_embed.weight.data[:, 2:] = -3.0
    for box in network.bbox_embed:
        box.get_submodule("layers.2").weight.data *= 0.05  # type: ignore[operator]
    ours, theirs = network.decoded(here), network.decoded(replace(there, x_BND=blank))
    assert all((a - b).abs().max() <= 1e-4 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("smca", [False, True])
def test_the_graph_is_the_network(runtime: str, smca: bool) -> None:
    network = moved(shaken(build(TINY.with_(smca=smca))))
    assert graph_differs_by(network, runtime) <= 5e-5


def test_gradients_reach_everything_that_trains() -> None:
    network = moved(build(TINY.with_(smca=True, frozen=False))).train()
    logits, boxes = network(images(2))
    (logits.square().sum() + boxes.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "wrong",
    [{"levels": 2}, {"dc5": True}, {"attention": "enact"}, {"family": "detr"}],
    ids=lambda wrong: "-".join(wrong),
)
def test_what_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="levels"):
        TINY.with_(**wrong)
    assert DetrArchitecture.from_json(TINY.to_json()) == TINY
