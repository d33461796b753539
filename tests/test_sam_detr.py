"""SAM-DETR's acceptance checks (S1 to S7) and its graph."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from supernet.detr import DetrArchitecture
from supernet.detr.sam_detr import SamDetr
from supernet.detr.sampling import cut, sample
from supernet.detr.semantics_aligner import AlignerLayer, PointAttention, nearness
from supernet.detr.tokens import Tokens
from supernet.graph.writer import GraphWriter
from tests.toy_detr import SMALL, graph_differs_by, images, shaken, trainable

FULL = DetrArchitecture(family="sam-detr", name="sam-detr-r50", queries=300)
TINY = SMALL.with_(family="sam-detr")


def refined(network: SamDetr) -> SamDetr:
    """Let boxes move, which they do not at the beginning."""
    for boxes in network.bbox_embed:
        nn.init.normal_(boxes.get_submodule("layers.2").weight, std=0.5)  # type: ignore[arg-type]
    return network


def test_s1_parameters() -> None:
    assert trainable(SamDetr(FULL)) == 58_073_546
    assert trainable(SamDetr(FULL.with_(group_norm=True))) == 58_073_546 + 512
    assert trainable(SamDetr(FULL.with_(smca=True))) == 58_122_794


def test_s2_multiply_adds_of_the_decoder() -> None:
    """16.18 G at 850 tokens, without the heads, where DETR's decoder has 1.83 G."""
    graph = GraphWriter()
    network = SamDetr(FULL.with_(decoder_layers=1))
    layer = network.layers[0]
    assert isinstance(layer, AlignerLayer)
    tokens = [graph.input(name, (1, 850, 256)) for name in ("memory", "pos")]
    x, boxes = graph.input("x", (1, 300, 256)), graph.input("boxes", (1, 300, 4))
    layer.emit(graph, x, boxes, *tokens, (25, 34))
    assert 6 * graph.macs.total() / 1e9 == pytest.approx(16.18, abs=0.02)


def test_s3_regions_and_points() -> None:
    """On a map that holds its own coordinates, what is sampled is where it was sampled."""
    h, w = 20, 30
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    ramp = torch.stack([x.flatten(), y.flatten()], 1)[None]
    boxes = torch.tensor([[[0.5, 0.4, 0.5, 0.3], [0.3, 0.6, 0.2, 0.5]]])
    regions = cut(Tokens(ramp, ramp, None, ((h, w),)), boxes, torch.ones(1, 2))
    shift = (torch.rand(2, 8, 2) * 2 - 1) * 6 / 7
    expected = boxes[0, :, None, :2] + boxes[0, :, None, 2:] / 2 * shift
    assert (sample(regions, shift) - expected).abs().max() <= 1e-4
    beyond = sample(regions, torch.ones(2, 1, 2))
    assert (beyond < 0.6 * (boxes[0, :, None, :2] + boxes[0, :, None, 2:] / 2)).all()


@torch.no_grad()
def test_s4_boxes_begin_where_queries_are() -> None:
    network = SamDetr(TINY).train()
    _, boxes = network(images(2))
    assert (boxes - network.query_embed.weight.sigmoid()).abs().max() <= 1e-6


def test_s5_references_carry_no_gradient() -> None:
    """From the first layer's boxes the first refinement learns; from the second's it does not."""
    network = refined(SamDetr(TINY)).train()
    first = network.bbox_embed[0].get_submodule("layers.2").weight
    assert isinstance(first, Tensor)
    for layer, learns in ((0, True), (1, False)):
        _, boxes = network(images())
        (gradient,) = torch.autograd.grad(boxes[layer].sum(), first)
        assert bool(gradient.any()) == learns


@pytest.mark.parametrize("smca", [False, True])
@torch.no_grad()
def test_s6_padding_changes_nothing(smca: bool) -> None:
    network = refined(SamDetr(TINY.with_(smca=smca))).eval()
    x = torch.randn(1, 32, 3, 5)
    pad = torch.ones(1, 4, 7, dtype=torch.bool)
    pad[:, :3, :5] = False
    nn.init.normal_(network.query_embed.weight, std=0.3)
    nn.init.constant_(network.query_embed.weight[:, 2:], -2.0)
    for boxes in network.bbox_embed:
        boxes.get_submodule("layers.2").weight.data *= 0.05  # type: ignore[operator]
    alone = network.decoded(network.encoded(network.tokens_of(x)))
    # Regions that reach past the image would see zeros alone, and what is encoded there else.
    memory = network.encoded(network.tokens_of(nn.functional.pad(x, (0, 2, 0, 1)), pad))
    assert memory.pad_BN is not None
    blank = memory.x_BND.masked_fill(memory.pad_BN[..., None], 0.0)
    padded = network.decoded(replace(memory, x_BND=blank))
    for a, b in zip(alone, padded, strict=True):
        assert (a - b).abs().max() <= 1e-4


@torch.no_grad()
def test_s7_no_scales_no_modulation() -> None:
    network = refined(SamDetr(TINY.with_(smca=True))).eval()
    plain = refined(SamDetr(TINY)).eval()
    weights = network.state_dict()
    H2 = 2 * TINY.heads
    for key, value in plain.state_dict().items():
        if ".points.layers.3." in key:
            weights[key][H2:] = 0
        value.copy_(weights[key][: len(value)])
    network.load_state_dict(weights)
    image = images()
    for a, b in zip(network(image), plain(image), strict=True):
        assert (a - b).abs().max() <= 1e-6
    near = nearness(torch.full((1, 1, 1, 2), 0.5), torch.full((1, 1, 1, 2), 2.0), (2, 2))
    assert near.flatten().tolist() == pytest.approx([-0.25] * 4)


@torch.no_grad()
def test_positions_pass_two_layers_with_relu_and_nothing_else() -> None:
    """As in the authors' code: queries and keys are the sums, without a further projection."""
    attention = PointAttention(16, 2, dropout=0.0)
    content, place = torch.randn(1, 3, 2, 16), torch.randn(1, 3, 2, 16)
    x, pos = torch.randn(1, 6, 16), torch.randn(1, 6, 16)

    def added(side: str, content: Tensor, place: Tensor) -> Tensor:
        position = attention.get_submodule(f"{side}_position")
        first, second = (position.get_submodule(f"layers.{i}") for i in (0, 1))
        project = attention.get_submodule(f"{side}_content")
        return project(content) + second(first(place).relu())  # type: ignore[no-any-return]

    logits = torch.einsum("bqhd,bnd->bhqn", added("q", content, place), added("k", x, pos))
    value = attention.v(x).view(1, 6, 2, 8)
    read = torch.einsum("bhqn,bnhe->bqhe", (logits / 4).softmax(-1), value)
    found = attention(content, place, Tokens(x, pos, None, ((2, 3),)), None)
    assert (found - attention.out_proj(read.flatten(2))).abs().max() <= 1e-5
    names = {name.split(".")[0] for name, _ in attention.named_parameters()}
    assert names == {"q_content", "q_position", "k_content", "k_position", "v", "out_proj"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("smca", [False, True])
def test_the_graph_is_the_network(runtime: str, smca: bool) -> None:
    network = refined(SamDetr(TINY.with_(smca=smca, group_norm=smca)))
    assert graph_differs_by(shaken(network), runtime) <= 5e-5


def test_the_graph_of_an_old_opset_samples_as_well() -> None:
    """Bilinear sampling has another name before opset 20."""
    assert graph_differs_by(shaken(refined(SamDetr(TINY))), "onnxruntime", 17) <= 5e-5


def test_gradients_reach_everything_that_trains() -> None:
    network = refined(SamDetr(TINY.with_(smca=True, frozen=False)))
    logits, boxes = network(images(2))
    (logits.square().sum() + boxes.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
