import math
from itertools import pairwise

import pytest
import torch

from supernet.architecture import Architecture
from supernet.errors import CheckpointError
from supernet.supernet import (
    CANDIDATES,
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
