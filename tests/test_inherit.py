from dataclasses import replace

import pytest
import torch

from heat.thinning.moves import State
from latency_tables.models import randomise
from supernet.errors import CheckpointError
from supernet.heatdetr.architecture import Architecture, GlobalBlock
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.operators.condensed import ActBlock
from supernet.heatdetr.operators.convbn import ConvBN, FeedForward
from supernet.heatdetr.recalibrate import recalibrate
from supernet.heatdetr.supernet import Mixture, SearchSpace, Supernet


def make(unit: Architecture, block: str = "cw") -> Supernet:
    template = unit.with_(
        widths=(64, 64, 96, 96), blocks=("RR", "RR", "RRR", "RR"), global_block=block
    )
    network = Supernet(SearchSpace(template=template, positions=(2, 2, 3, 2))).eval()
    randomise(network)
    return network


def logits_of(supernet: Supernet) -> dict[tuple[int, int], tuple[float, ...]]:
    pattern = ((9.0, 0, 0, 0), (0, 9.0, 0, 0), (0, 0, 9.0, 0))
    return {place: pattern[index % 3] for index, place in enumerate(supernet.logits())}


@pytest.mark.parametrize("block", ["cw", "oa"])
def test_full_widths_keep_the_function(unit: Architecture, block: str) -> None:
    supernet = make(unit, block)
    logits = logits_of(supernet)
    state = State.full(supernet.space)
    network = inherit(supernet, state.architecture(supernet.space, logits), state.positions())
    with torch.no_grad():
        for place, mixture in supernet.mixtures():
            mixture.r.copy_(torch.tensor(logits[place]) * 100)
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(network.eval()(image), supernet(image), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5


@pytest.mark.parametrize("block", ["act", "enact", "pool"])
def test_original_attention_hands_its_weights_on(unit: Architecture, block: GlobalBlock) -> None:
    """With as many clusters as tokens, or windows of one, nothing changes."""
    supernet = make(unit.with_(act_clusters=1.0, window=1), "oa")
    logits = logits_of(supernet)
    state = State.full(supernet.space)
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    found = []
    for other in (state, replace(state, global_block=block)):
        architecture = other.architecture(supernet.space, logits)
        network = inherit(supernet, architecture, other.positions()).eval()
        if block == "act":
            for unit_ in network.modules():
                if isinstance(unit_, ActBlock):
                    unit_.core.hash.bucket = 1e-4
        with torch.no_grad():
            found.append(network(image))
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4
    with pytest.raises(CheckpointError, match="no part of the supernet"):
        inherit(make(unit), architecture.with_(act_clusters=0.25, window=6), state.positions())


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_dropping_channels_that_are_zero_everywhere_keeps_the_output(
    unit: Architecture, stage: int
) -> None:
    """Zero 32 channels of a stage's stream, one head, and the FFN units they would keep."""
    supernet = make(unit)
    logits = logits_of(supernet)
    state = State.full(supernet.space)
    full = inherit(supernet, state.architecture(supernet.space, logits), state.positions()).eval()
    dead = torch.arange(32)
    _silence(full, stage, dead)
    # The same silence inside the supernet, so that inheriting must find it.
    source = dict(full.named_parameters())
    with torch.no_grad():
        for (number, position), mixture in supernet.mixtures():
            chosen = max(range(3), key=lambda c: logits[(number, position)][c])
            own = mixture.operators[chosen].named_parameters()
            for name, parameter in own:
                parameter.copy_(source[f"units.s{number}_{position}.{name}"])
        for name, parameter in supernet.named_parameters():
            if name in source and parameter.shape == source[name].shape:
                parameter.copy_(source[name])
    narrow = inherit(
        supernet,
        state.narrower(stage).architecture(supernet.space, logits),
        state.positions(),
    ).eval()
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(narrow(image), full(image), strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-4


@torch.no_grad()
def _silence(network: Detector, stage: int, dead: torch.Tensor) -> None:
    """Let nothing write the dead channels of a stage, and silence one head and FFN quarter."""
    d = network.architecture.widths[stage - 1]
    c = network.architecture.widths[3]

    def mute(conv: ConvBN, rows: torch.Tensor) -> None:
        conv.bn.weight[rows] = 0
        conv.bn.bias[rows] = 0

    wide = torch.cat([dead, dead + c])
    for place, unit in network.units.items():
        writes = place.startswith((f"s{stage}_", f"sam{stage}_"))
        if stage == 4:
            writes = writes or place.startswith(("scm_", "tcm_"))
        if stage == 1:
            writes = writes or place == "stem"
        writes = writes or (place.startswith("down") and place.endswith(str(stage)))
        if not writes:
            continue
        for module in unit.modules():
            rows = wide if place == "tcm_t1" else dead
            width = 2 * d if place == "tcm_t1" else d
            if isinstance(module, ConvBN) and module.bn.num_features == width:
                last_of_stem = place != "stem" or module is unit.conv3
                if last_of_stem:
                    mute(module, rows)
            elif isinstance(module, torch.nn.BatchNorm2d) and module.num_features == width:
                module.weight[rows] = 0
                module.bias[rows] = 0
            if isinstance(module, FeedForward):
                quiet = torch.arange(4 * len(rows))
                module.fc2.conv.weight[:, quiet] = 0
        if hasattr(unit, "proj"):
            unit.proj.conv.weight[:, :32] = 0
        if place == "tcm_t1":
            for block in unit.blocks:
                block.proj.conv.weight[:, :64] = 0
        if place == "stem":
            mute(unit.conv1, torch.arange(16))
            mute(unit.conv2, torch.arange(32))


def test_a_foreign_architecture_is_refused(unit: Architecture) -> None:
    supernet = make(unit)
    with pytest.raises(CheckpointError, match="no part of the supernet"):
        inherit(supernet, unit.with_(widths=(96, 64, 96, 96)), ((0, 1), (0,), (0, 1, 2), (0,)))


def test_recalibration_gives_the_plain_mean() -> None:
    layer = torch.nn.Sequential(ConvBN(3, 8, 3))
    batches = [torch.randn(4, 3, 8, 8) for _ in range(5)]
    recalibrate(layer, batches)
    means = torch.stack([layer[0].conv(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(layer[0].bn.running_mean, means, atol=1e-6)
    assert layer[0].bn.momentum == 0.1 and not layer.training


def test_mixture_operators_are_in_candidate_order() -> None:
    names = [type(operator).__name__ for operator in Mixture(32).operators]
    assert names == ["RepCNNUnit", "WindowBlock", "WindowBlock"]
