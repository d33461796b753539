"""ENACT's acceptance checks (E2 to E7), and the plain mean it is compared with."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from supernet.attention import Attention, EnactAttention, PoolAttention
from supernet.attention.enact import KEPT_LENGTHS, cropped, entropy, mean_run, smoothed
from supernet.errors import UserError

D, H = 64, 2


def tokens(N: int, B: int = 2) -> Tensor:
    return torch.randn(B, N, D)


def run(core: Attention, x: Tensor, pad: Tensor | None = None) -> Tensor:
    """Attend without projections, H heads."""
    k, v, pad = core.condense(x, x, pad)
    heads = [y.view(len(y), -1, H, D // H).transpose(1, 2) for y in (x * (D // H) ** -0.5, k, v)]
    return core.attend(*heads, pad).transpose(1, 2).flatten(2)


def smooth_field(side: int) -> Tensor:
    coarse = torch.randn(1, D, side // 5, side // 5)
    return (
        nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
        .flatten(2)
        .transpose(1, 2)
    )


def test_e2_windows_of_one_token_are_exact() -> None:
    x = tokens(50)
    for core in (EnactAttention(D, 1), PoolAttention(1)):
        assert (run(core, x) - run(Attention(), x)).abs().max() <= 1e-6


def test_e3_pooling_and_projecting_commute() -> None:
    core, project = EnactAttention(D, 6), nn.Linear(D, D)
    x = tokens(100)
    pooled, _, _ = core.condense(x, x)
    start, count = cropped(100, 6)
    weights = torch.stack([core.weigh(image) for image in x])
    windows = project(x)[:, start : start + 6 * count].reshape(2, count, 6, D)
    after = (weights[..., None] * windows).sum(2)
    assert (project(pooled) - after).norm() / after.norm() <= 1e-5


@torch.no_grad()
def test_e4_equal_scores_weigh_alike() -> None:
    N, core = 120, EnactAttention(D, 6)
    nn.init.zeros_(core.score.weight)
    assert entropy(torch.zeros(N)) == pytest.approx(math.log2(N) / N, abs=1e-6)
    weights = core.weigh(tokens(N)[0])
    assert weights[2:-2] == pytest.approx(1 / 6, abs=1e-6)
    assert weights[0] != pytest.approx(1 / 6, abs=1e-6)


@torch.no_grad()
def test_e5_windows_and_weights() -> None:
    """White noise has short runs, smooth fields longer ones; weights stay close to equal."""
    core = EnactAttention(D)
    noise = [mean_run(smoothed(entropy(torch.randn(900)), core.taps)) for _ in range(20)]
    assert sum(noise) / 20 == pytest.approx(5.5, abs=0.5)
    for _ in range(20):
        core.condense(smooth_field(32), smooth_field(32))
    assert 7 <= sum(core.seen) / 20 <= 10
    weights = core.weigh(smooth_field(32)[0])
    inner = weights[2:-2] * weights.shape[1]
    assert inner.min() > 0.93 and inner.max() < 1.07
    logits = 5 * torch.randn(1024)
    strong = EnactAttention(1, 6)
    nn.init.ones_(strong.score.weight)
    inner = strong.weigh(logits[:, None])[2:-2] * 6
    assert inner.min() > 0.95 and inner.max() < 1.05


def test_e5_distance_to_pool() -> None:
    """At the beginning ENACT is nearly a plain mean."""
    x = smooth_field(32)
    pooled, enact = run(PoolAttention(6), x), run(EnactAttention(D, 6), x)
    assert (pooled - enact).norm() / pooled.norm() < 0.05


@pytest.mark.parametrize("core", [EnactAttention(D), EnactAttention(D, 5), PoolAttention(5)])
def test_e6_images_do_not_matter_to_each_other(core: Attention) -> None:
    x = tokens(80)
    pad = torch.zeros(2, 80, dtype=torch.bool)
    pad[1, 63:] = True
    together = run(core, x, pad)
    assert (together[:1] - run(core, x[:1])).abs().max() <= 1e-5
    assert (together[1:, :63] - run(core, x[1:, :63])).abs().max() <= 1e-5


def test_e6_but_in_the_official_form_they_do() -> None:
    core = EnactAttention(D, "official")
    x = torch.cat([smooth_field(16), torch.randn(1, 256, D)])
    assert not torch.allclose(run(core, x)[:1], run(core, x[:1]), atol=1e-4)
    assert len({*list(core.seen)[:2]}) == 1 and len(core.seen) == 3


def test_the_lengths_that_are_remembered_do_not_grow() -> None:
    core = EnactAttention(D, "official")
    for _ in range(KEPT_LENGTHS):
        run(core, tokens(30))
    assert len(core.seen) == KEPT_LENGTHS


def test_official_scale() -> None:
    x = tokens(30)
    core = EnactAttention(D, 1, scale="official")
    k = x.view(2, -1, H, 32).transpose(1, 2)
    expected = ((k @ k.transpose(2, 3)).softmax(-1) / 32 @ k).transpose(1, 2).flatten(2)
    assert (run(core, x) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("N", "window", "exact", "expected"), [(850, 6, 3.56, 1.15), (3497, 6, 43.1, 9.5)]
)
def test_e7_multiply_adds(N: int, window: int, exact: float, expected: float) -> None:
    assert 6 * Attention().macs(N, 256) / 1e9 == pytest.approx(exact, rel=0.01)
    assert 6 * EnactAttention(256, window).macs(N, 256) / 1e9 == pytest.approx(expected, rel=0.01)


def test_e8_saved_for_backward() -> None:
    """MiB kept for the gradient of the core at N = 850, D = 256: the gain is against materialised
    attention alone."""
    x = torch.randn(1, 850, 256, requires_grad=True)

    def kept(run: Callable[[], Tensor]) -> float:
        sizes: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            run()
        return sum(sizes.values()) / 2**20

    def heads(y: Tensor) -> Tensor:
        return y.view(1, -1, 8, 32).transpose(1, 2)

    def by(core: Attention) -> Tensor:
        k, v, _ = core.condense(x * 1.0, x * 1.0)
        return core.attend(heads(x * 0.18), heads(k), heads(v))

    def materialised() -> Tensor:
        q, k, v = heads(x * 0.18), heads(x * 1.0), heads(x * 1.0)
        return torch.dropout((q @ k.transpose(2, 3)).softmax(-1), 0.1, True) @ v

    assert kept(materialised) == pytest.approx(68.6, rel=0.02)
    assert kept(lambda: by(Attention())) == pytest.approx(3.4, rel=0.05)
    assert kept(lambda: by(EnactAttention(256, 6))) <= 4.5


def test_autocast_finds_the_same_windows() -> None:
    core, x = EnactAttention(D), smooth_field(32)
    expected = core.condense(x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert (core.condense(x, x)[0] - expected).abs().max() < 0.02
    assert core.seen[0] == core.seen[1]


def test_gradients_reach_the_score() -> None:
    core = EnactAttention(D, 6)
    run(core, tokens(60)).square().sum().backward()
    assert core.score.weight.grad is not None and core.score.weight.grad.abs().max() > 0


def test_few_tokens_and_nothing_but_padding() -> None:
    for N in (1, 3):
        for core in (EnactAttention(D), EnactAttention(D, 6), PoolAttention(6)):
            x = tokens(N)
            assert torch.isfinite(run(core, x)).all()
            pad = torch.ones(2, N, dtype=torch.bool)
            assert torch.isfinite(run(core, x, pad)).all()


def test_bad_settings_are_refused() -> None:
    for windows in (0, "none"):
        with pytest.raises(UserError, match="windows"):
            EnactAttention(D, windows)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="windows of 0"):
        PoolAttention(0)
    with pytest.raises(UserError, match="sigma"):
        EnactAttention(D, sigma=0.3)
    with pytest.raises(UserError, match="calibrate"):
        EnactAttention(D).macs(100, D)
