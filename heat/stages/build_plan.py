"""Sizes a build for the machine: input size, search space and epochs from data, target, minutes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from latency_tables.devices import Target
from latency_tables.probe.machine import physical_cores
from supernet.data.detection_set import DetectionSet, Record
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchSpace
from supernet.train.aligned import training_loss
from supernet.train.distributed import Group, own_device
from supernet.train.feed import feed
from supernet.train.optimise import autocast_type, make_optimizer, parameter_groups
from supernet.train.recipes import SUPERNET
from supernet.train.threads import sparing

from ..spaces import SPACES
from ..thinning.measuring import measure_network
from ..thinning.moves import State, prior_logits

MAX_SIDE_PX = 512
"""Longest input side a build chooses by itself."""
ROOM = 1.1
"""How much slower than the target a full space should be, so that thinning has a choice."""
SUPERNET_SHARE = 0.25
"""Share of the minutes for the supernet."""
TRAIN_SHARE = 0.6
"""Share of the minutes for the final training."""
AFTER_TRAINING_SHARE = 0.05
"""Share of the minutes for export and evaluation."""
MIN_SUPERNET_EPOCHS = 4
SUPERNET_EPOCHS = (4, 24)
TRAIN_EPOCHS = (12, 150)


def choose_input_size(records: Sequence[Record]) -> tuple[int, int]:
    """Return height and width in multiples of 32 with the data's median shape."""
    height = float(np.median([record.height for record in records]))
    width = float(np.median([record.width for record in records]))
    scale = min(1.0, MAX_SIDE_PX / max(height, width))
    sides = [max(64, round(side * scale / 32) * 32) for side in (height, width)]
    return sides[0], sides[1]


def choose_space(
    named: Callable[[str], SearchSpace],
    target: Target,
    target_fps: float,
    data: DetectionSet,
    minutes: float,
) -> SearchSpace:
    """Return the smallest named space whose full network is too slow for the target by some room.

    Its cheapest full network counts, all RepCNN, so that thinning has a choice whatever the
    supernet prefers. A space whose supernet could not see the data a few times in its share of
    the minutes is not taken: a smaller one is trained better.
    """
    chosen = None
    for name in SPACES:
        space = named(name)
        if chosen is not None:
            seconds = step_seconds(_stand_in(space), data) * 2.5 * len(data.records)
            if seconds * MIN_SUPERNET_EPOCHS > SUPERNET_SHARE * minutes * 60:
                break
        chosen = space
        speed = measure_network(space.template, target.setting)
        if speed.fps < target_fps / ROOM:
            break
    assert chosen is not None
    return chosen


def _stand_in(space: SearchSpace) -> Detector:
    """Return the full network with one operator a position: cheap to time."""
    return Detector(State.full(space).architecture(space, prior_logits(space)))


def step_seconds(network: Detector, data: DetectionSet) -> float:
    """Return the seconds that one image costs in training, measured on two steps, which it takes.

    Where a training would run: on the GPU, or with the threads that it would use now.
    """
    with sparing(physical_cores()):
        return _step_seconds(network, data)


def _step_seconds(network: Detector, data: DetectionSet) -> float:
    config, group = SUPERNET, Group(device=own_device())
    kind = group.device.type
    few = replace(data, records=data.records[: 2 * config.batch_size])
    dtype = autocast_type(config.precision, group.device)
    best = float("inf")
    network.to(group.device).train()
    optimizer = make_optimizer(parameter_groups(network, config), config, group.device)
    for _ in range(2):
        size = network.architecture.input_size
        for images, targets in feed(few, size, config, range(1), group=group):
            start = time.perf_counter()
            with torch.autocast(kind, dtype, enabled=dtype is not None):
                outputs = network(images)
            loss = training_loss(outputs, targets, network.decode, config.assign)
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if kind == "cuda":
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - start) / len(images))
    return best


def training_budgets(minutes: float, spent_s: float) -> tuple[float, float]:
    """Return the seconds for the supernet and for the final training, given what is spent.

    They are the planned shares of the minutes, or as much less as is left for both.
    """
    total_s, left_s = 60 * minutes, left_to_train(minutes, spent_s)
    shares = SUPERNET_SHARE + TRAIN_SHARE
    supernet_s = min(SUPERNET_SHARE * total_s, left_s * SUPERNET_SHARE / shares)
    return supernet_s, min(TRAIN_SHARE * total_s, left_s)


def left_to_train(minutes: float, spent_s: float) -> float:
    """Return the seconds of the minutes that are left for training, given what is spent."""
    return max(0.0, (1 - AFTER_TRAINING_SHARE) * 60 * minutes - spent_s)


def epochs_for(
    seconds_an_image: float, images: int, budget_s: float, bounds: tuple[int, int]
) -> int:
    """Return the epochs that fit into a budget, within bounds."""
    fitting = int(budget_s / (seconds_an_image * images * 1.15))
    return max(bounds[0], min(bounds[1], fitting))
