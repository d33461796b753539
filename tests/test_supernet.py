import math
from itertools import pairwise

import pytest
import torch

from supernet.errors import CheckpointError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.supernet import (
    CANDIDATES,
    GLOBAL_BLOCKS,
    GlobalMixture,
    Mixture,
    SearchConfig,
    SearchSpace,
    Supernet,
    draw_noise,
    temperature,
)


def space(unit: Architecture) -> SearchSpace:
    return SearchSpace(template=unit.with_(blocks=("RR", "R", "RR", "R")), positions=(2, 1, 2, 1))


def test_gumbel_argmax_frequencies_are_the_softmax() -> None:
    r = torch.tensor([1.0, 0.0, -0.5, 0.3])
    draws = 200_000
    noisy = r + draw_noise(r.expand(draws, 4), "gumbel")
    frequency = noisy.argmax(1).bincount(minlength=4) / draws
    assert torch.allclose(frequency, r.softmax(0), atol=4 * math.sqrt(0.25 / draws))


def test_gumbel_trailing_candidate_probability() -> None:
    r = torch.tensor([0.0, 1.0])
    noisy = r + draw_noise(r.expand(200_000, 2), "gumbel")
    assert float((noisy.argmax(1) == 0).float().mean()) == pytest.approx(
        1 / (1 + math.e), abs=0.005
    )


def test_uniform_noise_never_bridges_a_gap_above_one() -> None:
    r = torch.tensor([0.0, 1.01])
    noisy = r + draw_noise(r.expand(100_000, 2), "uniform")
    assert int((noisy.argmax(1) == 0).sum()) == 0


def test_temperature_falls_exponentially() -> None:
    config = SearchConfig()
    values = [temperature(epoch, 10, config) for epoch in range(10)]
    assert values[0] == 5.0 and values[-1] == pytest.approx(0.1)
    ratios = [b / a for a, b in pairwise(values)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert temperature(0, 1, config) == 5.0


def test_mixture_is_the_weighted_sum() -> None:
    mixture = Mixture(32).eval()
    with torch.no_grad():
        mixture.r.copy_(torch.tensor([0.5, -1.0, 0.2, 0.1]))
        x = torch.randn(1, 32, 8, 8)
        p = mixture.r.softmax(0)
        expected = p[3] * x
        for weight, operator in zip(p, mixture.operators, strict=False):
            expected = expected + weight * operator(x)
        assert torch.allclose(mixture(x), expected, atol=1e-6)


def test_straight_through_runs_one_operator_and_trains_all_logits() -> None:
    mixture = Mixture(32).train()
    mixture.straight_through = True
    torch.manual_seed(3)
    out = mixture(torch.randn(2, 32, 8, 8))
    out.square().mean().backward()
    assert mixture.r.grad is not None and bool((mixture.r.grad != 0).all())
    used = [any(p.grad is not None for p in op.parameters()) for op in mixture.operators]
    assert sum(used) <= 1


def test_logits_are_frozen_at_first(unit: Architecture) -> None:
    network = Supernet(space(unit))
    network.start_epoch(0, 20)
    assert not any(m.r.requires_grad for _, m in network.mixtures())
    network.start_epoch(2, 20)
    assert all(m.r.requires_grad for _, m in network.mixtures())


def test_supernet_is_a_detector_with_mixtures(unit: Architecture) -> None:
    network = Supernet(space(unit)).eval()
    image = torch.zeros((1, *unit.input_size, 3), dtype=torch.uint8)
    logits, deltas = network(image)
    assert logits.shape == (1, 5, 3, 4, 6) and deltas.shape == (1, 5, 4, 4, 6)
    assert len(network.logits()) == 6
    assert all(len(r) == len(CANDIDATES) for r in network.logits().values())


def test_space_round_trip(unit: Architecture) -> None:
    one = space(unit)
    assert SearchSpace.from_json(one.to_json(), "x") == one
    with pytest.raises(CheckpointError, match="x holds no search space"):
        SearchSpace.from_json("{}", "x")


def test_global_choice_has_two_logits_for_the_whole_network(unit: Architecture) -> None:
    one = space(unit)
    chosen = SearchSpace(template=one.template, positions=one.positions, global_choice=True)
    assert SearchSpace.from_json(chosen.to_json(), "x") == chosen
    network = Supernet(chosen)
    searched = {place for place, part in network.units.items() if isinstance(part, GlobalMixture)}
    assert searched == {
        "s4_global", "sam4_global", "scm_global1", "scm_global2", "tcm_t1", "tcm_t2_0"
    }  # fmt: skip
    network.start_epoch(5, 10)
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(norm.weight)  # zero-started branches hide the choice
    logits, _ = network.train()(image)
    logits.square().mean().backward()
    assert network.global_r.grad is not None and float(network.global_r.grad.abs().sum()) > 0
    with torch.no_grad():
        network.global_r.copy_(torch.tensor([0.0, 1.0]))
    assert network.best_global_block() == "oa"


@pytest.mark.parametrize("kind", ["cw", "oa"])
def test_a_decided_global_block_is_inherited(unit: Architecture, kind: str) -> None:
    one = space(unit)
    chosen = SearchSpace(template=one.template, positions=one.positions, global_choice=True)
    network = Supernet(chosen).eval()
    with torch.no_grad():
        network.global_r[GLOBAL_BLOCKS.index(kind)] = 1000.0  # type: ignore[arg-type]
        for _, mixture in network.mixtures():
            mixture.r[0] = 1000.0
    architecture = one.template.with_(name="x", global_block=kind)
    positions = tuple(tuple(range(count)) for count in one.positions)
    detector = inherit(network, architecture, positions).eval()
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(detector(image), network(image), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
