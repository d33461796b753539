"""ACT's acceptance checks (A1 to A8), its static form, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from supernet.attention import ActAttention, Attention
from supernet.attention.hashing import Hash, cluster, cluster_bounded, collision_probability
from supernet.errors import HeatError, UserError

E = 32


def qkv(N: int, M: int = 0, B: int = 2, H: int = 3, std: float = 1.0) -> list[Tensor]:
    """Return queries as a host gives them, scaled, and keys and values."""
    q = std * torch.randn(B, H, N, E) * E**-0.5
    return [q, torch.randn(B, H, M or N, E), torch.randn(B, H, M or N, E)]


def repeated(distinct: int, times: int, B: int = 1, H: int = 2) -> Tensor:
    x = 40 * torch.randn(B, H, distinct, E)
    order = torch.randperm(distinct * times)
    return x.repeat(1, 1, times, 1)[:, :, order]


def smooth_field(side: int, std: float) -> Tensor:
    """Return a map that changes slowly, as images do, [1, 1, side^2, E]."""
    coarse = torch.randn(1, E, side // 4, side // 4)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    return (std * fine / fine.std()).flatten(2).transpose(1, 2)[:, None]


def test_a1_small_buckets_are_exact() -> None:
    q, k, v = qkv(100)
    act = ActAttention(rounds=24, bucket=1e-3)
    assert (act.attend(q, k, v) - Attention().attend(q, k, v)).abs().max() <= 1e-5
    assert act.seen.most == 100 and act.seen.share == 1


def test_a2_repeated_queries() -> None:
    q, (_, k, v) = repeated(50, 7), qkv(90, B=1, H=2)
    k = k * E**-0.5 / 40
    act = ActAttention(rounds=32)
    assert (act.attend(q, k, v) - Attention().attend(q, k, v)).abs().max() <= 1e-5
    assert act.seen.most == 50 and act.seen.clusters == 2 * 50


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(0.1, 0.9202), (0.25, 0.8005), (0.5, 0.6095), (1.0, 0.3687), (2.0, 0.1954)],
)
def test_a3_collision_probability(distance: float, expected: float) -> None:
    """By the closed form, and by 200,000 draws of the very hash that is used."""
    assert collision_probability(distance * 8, 8) == pytest.approx(expected, abs=1e-4)
    x = torch.randn(20_000, 1, E)
    step = torch.randn(20_000, 1, E)
    y = x + distance * 8 * step / step.norm(dim=-1, keepdim=True)
    rates, fourfold = [], []
    for seed in range(20):
        hash_ = Hash(E, 32, seed=seed)
        same = hash_.codes(x) == hash_.codes(y)
        rates.append(same.float().mean())
        fourfold.append(same.view(-1, 8, 4).all(-1).float().mean())
    assert torch.stack(rates).mean() == pytest.approx(expected, abs=0.01)
    assert torch.stack(fourfold).mean() == pytest.approx(expected**4, abs=0.02)


def test_a4_more_rounds_fewer_errors() -> None:
    """C never falls as L grows; errors fall with L, and grow with the width of buckets."""
    q, k, v = qkv(300, B=1, H=4)
    exact = Attention().attend(q, k, v)

    def error(**options: float) -> tuple[float, list[int]]:
        found, counts = 0.0, []
        for seed in range(12):
            act = ActAttention(seed=seed, **options)  # type: ignore[arg-type]
            found += float((act.attend(q, k, v) - exact).square().mean())
            counts.append(act.seen.clusters)
        return found, counts

    by_rounds = [error(rounds=rounds) for rounds in (16, 20, 24, 32)]
    for (more, many), (less, fewer) in pairwise(by_rounds):
        assert less < more
        assert all(a >= b for a, b in zip(fewer, many, strict=True))
    by_width = [error(rounds=24, bucket=bucket)[0] for bucket in (2.0, 4.0, 6.0, 8.0, 12.0)]
    assert by_width == sorted(by_width) and by_width[0] < by_width[-1]


def test_a5_alike_queries_are_fewer_clusters() -> None:
    field = smooth_field(32, std=2.0)
    mean = field.mean(2, keepdim=True)
    shares = []
    for factor in (1.0, 0.5, 0.2, 0.1, 0.0):
        act = ActAttention(rounds=24)
        x = mean + factor * (field - mean)
        act.attend(x, field, field)
        shares.append(act.seen.share)
    assert all(b < a for a, b in pairwise(shares))
    assert shares[-1] == 1 / 1024


@pytest.mark.parametrize(
    ("rounds", "share", "expected"),
    [(32, 0.595, 28.3), (24, 0.462, 23.2), (20, 0.366, 19.5), (16, 0.250, 15.1)],
)
def test_a6_multiply_adds(rounds: int, share: float, expected: float) -> None:
    """Six encoder layers at DETR-DC5's mean size, by the paper's Table 1."""
    tokens = 3517
    act = ActAttention(rounds=rounds, most=round(share * tokens))
    assert 6 * act.macs(tokens, 256) / 1e9 == pytest.approx(expected, rel=0.02)
    assert 6 * Attention().macs(tokens, 256) / 1e9 == pytest.approx(43.5, rel=0.02)


@pytest.mark.parametrize("clusters", ["keys", "both"])
def test_a7_repeated_keys(clusters: str) -> None:
    """Of repeated keys the mean value counts as often as there are members."""
    q, _, v = qkv(120, B=1, H=2)
    k = torch.cat([repeated(30, 3), 40 * torch.randn(1, 2, 30, E)], 2)
    q = q / 40
    if clusters == "both":
        q = repeated(40, 3) / 1600
    act = ActAttention(rounds=32, clusters=clusters)  # type: ignore[arg-type]
    if clusters == "both":
        act.hash.bucket = 0.02
    assert (act.attend(q, k, v) - Attention().attend(q, k, v)).abs().max() <= 1e-5
    assert act.seen.clusters < 2 * (120 + (120 if clusters == "both" else 0))


def test_a8_deterministic() -> None:
    q, k, v = qkv(60)
    assert torch.equal(ActAttention(seed=3).attend(q, k, v), ActAttention(seed=3).attend(q, k, v))
    assert not torch.equal(
        ActAttention(seed=3).attend(q, k, v), ActAttention(seed=4).attend(q, k, v)
    )


@pytest.mark.parametrize("clusters", ["queries", "keys", "both"])
@pytest.mark.parametrize("most", [None, 60])
def test_a8_padding_changes_nothing(clusters: str, most: int | None) -> None:
    q, k, v = qkv(60, std=20.0)
    pad = torch.zeros(2, 60, dtype=torch.bool)
    pad[1, 45:] = True
    act = ActAttention(clusters=clusters, most=most)  # type: ignore[arg-type]
    together = act.attend(q, k, v, pad)
    alone = act.attend(*(x[1:, :, :45] for x in (q, k, v)))
    assert (together[1:, :, :45] - alone).abs().max() <= 1e-5
    assert (together[:1] - act.attend(*(x[:1] for x in (q, k, v)))).abs().max() <= 1e-5


@pytest.mark.parametrize("clusters", ["queries", "keys", "both"])
def test_a8_gradients(clusters: str) -> None:
    act = ActAttention(width=4, rounds=4, bucket=4.0, clusters=clusters).double()  # type: ignore[arg-type]
    parts = [torch.randn(1, 2, 7, 4, dtype=torch.double, requires_grad=True) for _ in range(3)]
    act.attend(*parts)
    assert 2 < act.seen.clusters < act.seen.vectors
    assert torch.autograd.gradcheck(act.attend, parts, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("clusters", ["queries", "keys", "both"])
def test_the_static_form_is_the_dynamic_one(clusters: str) -> None:
    q, k, v = qkv(80, std=10.0)
    dynamic = ActAttention(clusters=clusters)  # type: ignore[arg-type]
    static = ActAttention(clusters=clusters, most=80)  # type: ignore[arg-type]
    assert (dynamic.attend(q, k, v) - static.attend(q, k, v)).abs().max() <= 1e-5
    assert dynamic.seen == static.seen and static.seen.overflows == 0


def test_overflows_are_counted_and_merged() -> None:
    q, k, v = qkv(80, std=40.0)
    act = ActAttention(most=10)
    assert torch.isfinite(act.attend(q, k, v)).all()
    assert act.seen.most > 10 and act.seen.overflows == 6 == act.seen.groups
    index, counts = cluster_bounded(torch.arange(9.0)[None].flip(-1), 4)
    assert index[0].unique().tolist() == [0, 1, 2, 3] and counts.tolist() == [9]


def test_clusters_are_equal_codes() -> None:
    codes = torch.tensor([[[1, 2], [1, 2], [2, 1]], [[0, 0], [5, 5], [0, 0]]]).float()
    index, counts = cluster(codes)
    assert counts.tolist() == [2, 2]
    assert index[0, 0] == index[0, 1] != index[0, 2] and index[1, 0] == index[1, 2] != index[1, 1]


def test_one_token_and_nothing_but_padding() -> None:
    q, k, v = qkv(1)
    for act in (ActAttention(), ActAttention(most=4), ActAttention(clusters="both")):
        assert torch.equal(act.attend(q, k, v), v)
        pad = torch.ones(2, 1, dtype=torch.bool)
        assert torch.isfinite(act.attend(q, k, v, pad)).all()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="33 rounds"):
        ActAttention(rounds=33)
    with pytest.raises(UserError, match="width 0"):
        ActAttention(bucket=0)
    with pytest.raises(UserError, match="at most 0 clusters"):
        ActAttention(most=0)
    with pytest.raises(HeatError, match="overflows"):
        ActAttention().half().attend(*(x.half() for x in qkv(4)))
    assert math.isnan(ActAttention().seen.share)


@pytest.mark.parametrize("clusters", ["queries", "keys", "both"])
def test_autocast_changes_little(clusters: str) -> None:
    parts = qkv(60)
    act = ActAttention(clusters=clusters, bucket=1e-2)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        half = act.attend(*(x.bfloat16() for x in parts))
    assert half.dtype == torch.bfloat16
    assert (half.float() - Attention().attend(*parts)).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hashing_stays_in_float32_under_autocast(dtype: torch.dtype) -> None:
    """The sum of the codes was a matrix product: its keys collided, in float16 they overflowed."""
    hash_, x = Hash(32, 8), torch.randn(2, 400, 32)
    exact = hash_.keys(x)
    with torch.autocast("cpu", dtype):
        assert torch.equal(hash_.keys(x), exact)
