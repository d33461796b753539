"""Muon: orthogonal updates of convolutions, AdamW for the rest, exact after loading its state."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.detr.detr import Host
from supernet.errors import UserError
from supernet.network import build, find_architecture
from supernet.train import optimise
from supernet.train.muon import RMS, MuonAdamW, is_matrix, orthogonalised
from supernet.train.optimise import (
    ParameterGroup,
    make_optimizer,
    parameter_groups,
    parameter_groups_of_detr,
)
from supernet.train.recipes import DETR_RATE, TrainConfig
from tests.command_line import fails

MUON = TrainConfig(optimizer="muon")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(16, 24, 3),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 24, 3, groups=24),
        nn.Conv2d(24, 4, 1),
    )
    return layers.to(memory_format=torch.channels_last)


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    groups: list[ParameterGroup] = [
        {"params": list(net.parameters()), "weight_decay": 0.0, "peak": 0.01, "orthogonal": True}
    ]
    config = TrainConfig(optimizer="muon", learning_rate=0.01)
    return make_optimizer(groups, config, torch.device("cpu"))


def step(net: nn.Module, optim: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(seed))
    optim.zero_grad()
    net(x).square().mean().backward()
    optim.step()


def test_matrices_are_orthogonalised_in_the_precision_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types = {"f32": None, "bf16": torch.bfloat16, "auto": torch.bfloat16}
    monkeypatch.setattr(optimise, "autocast_type", lambda precision, device: types[precision])
    for precision, dtype in (("f32", torch.float32), ("auto", torch.bfloat16)):
        config = TrainConfig(optimizer="muon", precision=precision)  # type: ignore[arg-type]
        found = make_optimizer(parameter_groups(network(), config), config, torch.device("cpu"))
        assert isinstance(found, MuonAdamW) and found.dtype is dtype


@pytest.mark.parametrize("shape", [(3, 16, 40), (1, 20, 20), (2, 8, 300)])
def test_singular_values_end_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before, after = torch.linalg.svd(matrices), torch.linalg.svdvals(orthogonalised(matrices))
    assert after.min() > 0.3 and after.max() < 1.3
    nearest = before.U @ before.Vh[:, : shape[1]]
    same = (orthogonalised(matrices) * nearest).sum((1, 2)) / shape[1]
    assert (same > 0.75).all()  # the same singular vectors


def test_only_wide_convolutions_that_mix_channels_are_matrices() -> None:
    net = network()
    assert [name for name, p in net.named_parameters() if is_matrix(p)] == ["0.weight"]


def orthogonal_in(net: nn.Module, groups: list[ParameterGroup]) -> set[str]:
    found = make_optimizer(groups, MUON, torch.device("cpu"))
    chosen = {id(w) for g in found.param_groups if g["orthogonal"] for w in g["params"]}
    return {name for name, w in net.named_parameters() if id(w) in chosen}


def test_linear_maps_are_orthogonal_in_detrs_family() -> None:
    net = build(find_architecture("sam-detr-s").with_(base=16))
    assert isinstance(net, Host)
    found = orthogonal_in(net, parameter_groups_of_detr(net, MUON))
    layer = "transformer.encoder.layers.0"
    assert {f"{layer}.linear1.weight", f"{layer}.self_attn.in_proj_weight"} <= found
    assert any(name.startswith("backbone.") for name in found)
    assert not found & {"query_embed.weight", "bbox_embed.0.layers.2.weight", f"{layer}.norm1.bias"}


@pytest.mark.parametrize(
    ("asked", "rate"),
    [
        (["--architecture", "sam-detr-s"], DETR_RATE),
        (["--architecture", "sam-detr-s", "--learning-rate", 1e-3], 1e-3),
        (["--architecture", "sam-detr-s", "--recipe", "sam-detr"], 1e-4),
        (["--architecture", "pico"], 1e-3),
    ],
)
def test_detrs_family_has_a_rate_of_its_own(
    asked: list[object], rate: float, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []

    def run(
        _: object, data: object, architecture: object, config: TrainConfig, **more: Any
    ) -> None:
        seen.append(config)
        raise UserError("seen")

    monkeypatch.setattr("heat.stages.train.train", run)
    assert "seen" in fails(2, "train", "--data", shapes, *asked, "--out", tmp_path)
    assert seen[0].learning_rate == rate


def test_tables_of_heatdetr_are_left_to_adamw() -> None:
    net = network()
    net.register_parameter("table", nn.Parameter(torch.zeros(225, 16)))
    assert orthogonal_in(net, parameter_groups(net, MUON)) == {"0.weight"}


def test_updates_have_one_size() -> None:
    net = network()
    before = copy.deepcopy(net)
    step(net, optimizer(net), 0)
    moved = (net[0].weight - before[0].weight).detach()
    rms = float(moved.square().mean().sqrt())  # type: ignore[operator]
    assert 0.5 * RMS * 0.01 < rms < 1.5 * RMS * 0.01
    # AdamW's first step moves every other weight by the learning rate.
    other: Tensor = (net[3].weight - before[3].weight).detach().abs()  # type: ignore[operator]
    torch.testing.assert_close(other, torch.full_like(other, 0.01), rtol=1e-3, atol=1e-5)


def test_the_state_continues_where_it_was_saved() -> None:
    net = network()
    optim = optimizer(net)
    step(net, optim, 0)
    again = copy.deepcopy(net)
    other = optimizer(again)
    other.load_state_dict(copy.deepcopy(optim.state_dict()))
    assert isinstance(other, MuonAdamW)
    for seed in (1, 2):
        step(net, optim, seed)
        step(again, other, seed)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
