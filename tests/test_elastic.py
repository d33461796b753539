"""An elastic supernet: its networks run on its own weights."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from heat.spaces import search_space
from heat.stages.elastic import of_every_block
from heat.thinning.moves import State
from supernet.errors import CheckpointError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.elastic import Elastic, Member, cuts_of
from supernet.heatdetr.inherit import inherit, order_channels
from supernet.heatdetr.supernet import Supernet
from supernet.train.distributed import Group, seed_step
from supernet.train.elastic_task import ElasticTask
from supernet.train.optimise import make_optimizer, make_scaler
from supernet.train.recipes import recipe
from supernet.train.stepper import Stepper
from tests.test_inherit import logits_of, make


def members_of(supernet: Supernet) -> list[Member]:
    """Return the largest network, a narrower one, and one without some layers and operators."""
    logits, full = logits_of(supernet), State.full(supernet.space)
    states = [
        full,
        full.narrower(2).narrower(4),
        full.without((3, 1)).without((1, 0)).narrower(3).forbidding((1, 1), 2).narrower(4),
    ]
    return [Member(s.architecture(supernet.space, logits), s.positions()) for s in states]


def ordered(supernet: Supernet) -> Supernet:
    largest = members_of(supernet)[0]
    return order_channels(supernet, largest.architecture, largest.positions)


@pytest.mark.parametrize("block", ["cw", "oa"])
def test_the_order_of_channels_keeps_the_function(unit: Architecture, block: str) -> None:
    supernet = make(unit, block)
    largest = members_of(supernet)[0]
    elastic = ordered(supernet)
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(elastic.eval()(image), supernet(image), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-4
        pair = [
            inherit(net, largest.architecture, largest.positions) for net in (supernet, elastic)
        ]
        for a, b in zip(*(net.eval()(image) for net in pair), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-4


def test_the_first_channels_are_those_that_thinning_would_keep(unit: Architecture) -> None:
    supernet = make(unit)
    narrow = members_of(supernet)[1]
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    once = inherit(supernet, narrow.architecture, narrow.positions).eval()
    elastic = inherit(ordered(supernet), narrow.architecture, narrow.positions).eval()
    with torch.no_grad():
        for a, b in zip(once(image), elastic(image), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-4


@pytest.mark.parametrize("head", ["nms", "one-to-one"])
@pytest.mark.parametrize("boxes", ["deltas", "distributions"])
@pytest.mark.parametrize("block", ["cw", "oa"])
def test_members_compute_what_the_inherited_networks_do(
    unit: Architecture, block: str, boxes: str, head: str
) -> None:
    elastic = ordered(make(unit.with_(head=head, boxes=boxes), block))
    members = members_of(elastic)
    model = Elastic(elastic, members)
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    weights = dict(elastic.named_parameters())
    for member, shared in zip(members, model.shared, strict=True):
        network = inherit(elastic, member.architecture, member.positions).train()
        for a, b in zip(network(image), shared(weights, image), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_gradients_reach_the_supernet_and_the_smallest_member_alone_only_its_part(
    unit: Architecture,
) -> None:
    elastic = ordered(make(unit))
    members = members_of(elastic)
    model = Elastic(elastic, members)
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    sum(
        part.square().sum() for part in model.shared[-1](dict(elastic.named_parameters()), image)
    ).backward()
    weight = elastic.units["head"].cls.weight
    kept = members[-1].architecture.widths[3]
    assert weight.grad is not None
    assert weight.grad[:, :kept].abs().sum() > 0
    assert not weight.grad[:, kept:].any()
    before = copy.deepcopy(elastic.state_dict())
    torch.manual_seed(3)
    drawn = {model.draw() for _ in range(40)}
    assert drawn == {1, 2}, "the largest network has turns of its own"
    for model.largest in (True, False):
        model(image)
    for name, value in elastic.state_dict().items():
        assert torch.equal(value, before[name]), f"{name}: statistics are recalibrated, not learnt"


def test_networks_of_each_global_block_are_trained() -> None:
    """On a GPU thinning may take the blocks of self-attention, which no network had trained.

    Of those it may average the keys.
    """
    space = replace(search_space("micro", input_size=(64, 64), num_classes=2), global_choice=True)
    supernet = Supernet(space)
    for preferred, kinds in ((0, {"cw"}), (1, {"cw", "oa", "pool"})):
        supernet.global_r.data = torch.tensor([2.0 * (index == preferred) for index in (0, 1)])
        assert {member.architecture.global_block for member in of_every_block(supernet)} == kinds


def test_members_without_weights_in_the_supernet_are_refused(unit: Architecture) -> None:
    elastic = ordered(make(unit, "oa"))
    largest = members_of(elastic)[0]
    scored = Member(largest.architecture.with_(global_block="enact"), largest.positions)
    with pytest.raises(CheckpointError, match="no weights here"):
        cuts_of(elastic, [scored])
    wider = Member(largest.architecture.with_(widths=(96, 96, 96, 96)), largest.positions)
    with pytest.raises(CheckpointError, match="no part of the supernet"):
        cuts_of(elastic, [wider])


def test_a_loss_that_is_not_finite_skips_the_step(
    unit: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is that of a drawn network; what the largest learnt before it stays."""
    elastic = ordered(make(unit.with_(input_size=(64, 64))))
    data = SimpleNamespace(names=("a",), records=[], digest="")
    task = ElasticTask(elastic, cast(Any, data), members_of(elastic))
    config = recipe("small", precision="f32", epochs=1)
    optimizer = make_optimizer(task.parameter_groups(config), config, torch.device("cpu"))
    stepper = Stepper(task, config, optimizer, make_scaler("f32", torch.device("cpu")), Group())
    turns: list[int] = []

    def loss(outputs: Any, targets: Any, config: Any) -> dict[str, torch.Tensor]:
        turns.append(task.turn)
        scale = float("nan") if len(turns) == 2 else 1.0
        return {"classes": scale * outputs[0].square().mean()}

    monkeypatch.setattr(task, "loss", loss)
    batch = (torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8), [None, None])
    assert stepper.step([batch]) is None
    assert turns == [0, 1] and stepper.bad_steps == 1
    assert all(value.isfinite().all() for value in elastic.state_dict().values())
    assert stepper.step([batch]) is not None
    assert turns == [0, 1, 0, 1] and stepper.bad_steps == 0


def test_a_turn_has_one_network(unit: Architecture) -> None:
    """Each batch of an accumulated step, and each process, drew one of its own."""
    elastic = ordered(make(unit.with_(input_size=(64, 64))))
    data = SimpleNamespace(names=("a",), records=[], digest="")
    task = ElasticTask(elastic, cast(Any, data), members_of(elastic))
    drawn = {}
    for step in range(20):
        for rank in (0, 1):
            seed_step(0, step, rank)
            task.turn = 1
            drawn.setdefault(step, set()).add(task.elastic.drawn)
    assert all(len(found) == 1 for found in drawn.values())
    assert set.union(*drawn.values()) == {1, 2}
