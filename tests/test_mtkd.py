"""MTKD's acceptance checks (1 to 4 and 6; the fifth trains: test_detr_learns)."""

import pytest
import torch
from torch import Tensor

from supernet.attention import ActAttention, Attention
from supernet.detr import Detr
from supernet.detr.transformer import EncoderLayer
from supernet.train.mtkd import act_cores, attending, both_branches, distance
from supernet.train.optimise import parameter_groups_of_detr, rate_factor
from supernet.train.recipes import recipe
from tests.toy_detr import SMALL, images


def network(**changes: object) -> Detr:
    return Detr(SMALL.with_(**changes)).eval()


def test_mtkd_1_no_new_parameters() -> None:
    plain, act = network(), network(attention="act", rounds=16)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in act.state_dict().items()
    }


def test_mtkd_2_nothing_to_learn_where_act_is_exact() -> None:
    host = network()
    branches = both_branches(host, act_cores(host, bucket=1e-3), images(2))
    loss = distance(branches)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.abs().max() for p in host.parameters() if p.grad is not None]
    assert torch.stack(gradients).max() <= 1e-2


def test_mtkd_3_the_exact_branch_is_a_constant() -> None:
    host = network()
    branches = both_branches(host, act_cores(host, rounds=2), images(2))
    exact, clustered = branches.exact[1], branches.clustered[1]
    loss = distance(branches)
    assert float(loss.detach()) > 1e-5
    gradients = torch.autograd.grad(loss, [exact, clustered], allow_unused=True)
    assert gradients[0] is None and isinstance(gradients[1], Tensor) and gradients[1].any()


def test_mtkd_4_optimiser_and_schedule() -> None:
    """AdamW at 1e-5 for five epochs and 1e-6 for two, with DETR's crops (section 4.1)."""
    config = recipe("mtkd")
    assert (config.learning_rate, config.epochs, config.ema_decay) == (1e-5, 7, 0.0)
    steps = [config.learning_rate * rate_factor(step, 700, config) for step in (1, 499, 500, 699)]
    assert steps == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])
    assert config.augment.crop == 0.5 and config.augment.mosaic == 0.0
    groups = parameter_groups_of_detr(network(frozen=True), config)
    assert sorted({group["peak"] for group in groups}) == pytest.approx([1e-6, 1e-5])
    chosen = [parameter for group in groups for parameter in group["params"]]
    trainable = [p for p in network(frozen=True).parameters() if p.requires_grad]
    assert len(chosen) == len(trainable)


def test_one_pass_of_the_backbone() -> None:
    host, calls = network(), []
    host.body.register_forward_hook(lambda *_: calls.append(1))
    both_branches(host, act_cores(host), images())
    assert len(calls) == 1


def test_mtkd_6_one_checkpoint_runs_at_any_rounds() -> None:
    host, image = network(), images()
    weights = host.state_dict()
    found = {}
    with torch.inference_mode():
        found["exact"] = host(image)[1]
        for rounds in (32, 24, 20, 16):
            other = network(attention="act", rounds=rounds)
            other.load_state_dict(weights)
            found[str(rounds)] = other(image)[1]
            with attending(host, act_cores(host, rounds)):
                assert torch.equal(host(image)[1], found[str(rounds)])
        assert torch.equal(host(image)[1], found["exact"])
    apart = [float((boxes - found["exact"]).abs().mean()) for boxes in found.values()]
    assert apart[0] == 0 < min(apart[1:]) and apart[4] > apart[1]


def test_dropout_is_no_distance_between_the_branches() -> None:
    """Attention of other shapes drew other random numbers: the distance was that of its dropout."""
    found = {}
    for dropout in (0.0, 0.1):
        host = network(dropout=dropout).train()
        torch.manual_seed(1)
        branches = both_branches(host, act_cores(host, 16), images())
        found[dropout] = float(distance(branches).detach())
    assert 0 < found[0.1] < 5 * found[0.0]


def test_cores_come_back_after_an_error() -> None:
    host = network()
    with pytest.raises(KeyError), attending(host, act_cores(host)):
        assert isinstance(host.encoder.layers[0], EncoderLayer)
        assert isinstance(host.encoder.layers[0].self_attn.core, ActAttention)
        raise KeyError
    assert type(host.encoder.layers[0].self_attn.core) is Attention
