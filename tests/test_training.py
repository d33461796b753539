import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from supernet.checkpoint import load_weights
from supernet.data.augment import AugmentConfig
from supernet.data.detection_set import DetectionSet, Record
from supernet.errors import CheckpointError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.loop import fit
from supernet.train.optimise import rate_factor
from supernet.train.recipes import RECIPES, TrainConfig, recipe
from supernet.train.running import Running
from supernet.train.shown import augment_of
from tests.short_training import CONFIG, first_images, weights


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 9)


def test_loss_falls(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    losses: list[float] = []
    config = replace(CONFIG, epochs=15, learning_rate=2e-3)

    def keep(_: int, means: dict[str, float]) -> None:
        losses.append(means["classes"] + means["boxes"])

    fit(Detector(small), data, config, tmp_path, on_epoch=keep)
    assert losses[-1] < 0.9 * losses[0]


def test_averaged_weights_are_judged(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    seen: list[Detector] = []

    def judge(network: Detector) -> dict[str, float]:
        seen.append(network)
        return {"ap": 0.5}

    fit(
        Detector(small),
        data,
        replace(CONFIG, epochs=3),
        tmp_path,
        Running(judge=judge, judge_every=2),
    )
    assert len(seen) == 2 and not seen[1].training
    saved = weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in seen[1].state_dict().items())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["ap"] for row in rows] == ["", "0.5", "0.5"]


def test_pictures_of_any_kind_train(small: Architecture, tmp_path: Path) -> None:
    """A very large one, one with thousands of boxes, one without any."""
    rng = np.random.default_rng(0)
    records = []
    for index, (size, boxes) in enumerate((((4000, 6000), 3), ((300, 400), 3000), ((40, 30), 0))):
        path = tmp_path / f"{index}.jpg"
        coarse = rng.integers(0, 255, (size[0] // 10, size[1] // 10, 3)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, size[::-1]))
        low = rng.uniform(0, 0.7, (boxes, 2))
        corners = np.hstack([low, low + 0.2]) * np.tile(size[::-1], 2)
        labels = rng.integers(0, 4, boxes)
        records.append(Record(index, path, *size, corners.astype(np.float32), labels))
    names = ("a", "b", "c", "d")
    data = DetectionSet(tmp_path, "train", tmp_path / "x", names, (0, 1, 2, 3), tuple(records))
    config = replace(CONFIG, epochs=1, augment=AugmentConfig(mosaic=0.5))
    for assign in ("uniform", "aligned"):
        done = fit(Detector(small), data, replace(config, assign=assign), tmp_path / assign)
        assert done.skipped_steps == 0


def test_recipes() -> None:
    assert recipe("small", epochs=30).plain_epochs == 10
    assert recipe("small", epochs=None, batch_size=4) == replace(RECIPES["small"], batch_size=4)
    assert RECIPES["3x"].schedule == "3x" and RECIPES["3x"].learning_rate == 1e-4
    with pytest.raises(UserError, match="--recipe long"):
        recipe("long")


def test_supernet_trains_and_keeps_its_logits(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    space = SearchSpace(template=small.with_(blocks=("R", "R", "R", "R")), positions=(1, 1, 1, 1))
    network = Supernet(space)
    shown = AugmentConfig(pasted=0.5, scale=(0.9, 1.1))
    result = fit(network, data, replace(CONFIG, epochs=3, augment=shown), tmp_path)
    again = Supernet(space)
    info = load_weights(result.checkpoint, again)
    assert augment_of(info) == shown
    assert info.kind == "supernet" and info.names == data.names
    assert again.logits() == network.logits()
    other = Supernet(space, SearchConfig(noise="uniform"))
    with pytest.raises(CheckpointError, match=r"\(search.noise uniform against gumbel\)"):
        fit(other, data, replace(CONFIG, epochs=3, augment=shown), tmp_path)
    assert any(value != 0 for r in network.logits().values() for value in r)


def test_schedules() -> None:
    cosine = TrainConfig(epochs=10, warmup_steps=10)
    assert rate_factor(0, 100, cosine) == pytest.approx(0.1)
    assert rate_factor(10, 100, cosine) == 1.0
    assert rate_factor(99, 100, cosine) < 0.02
    flat = TrainConfig(epochs=10, warmup_steps=10, schedule="flat-cosine")
    assert [rate_factor(step, 100, flat) for step in (10, 50, 70)] == [1.0, 1.0, 1.0]
    assert rate_factor(85, 100, flat) == pytest.approx(0.505)
    assert rate_factor(99, 100, flat) < 0.02
    steps = TrainConfig(schedule="1x")
    assert rate_factor(70, 120, steps) == 1.0
    assert rate_factor(80, 120, steps) == pytest.approx(0.1)
    assert rate_factor(119, 120, steps) == pytest.approx(0.01)
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"ema_decay": 1.0}):
        with pytest.raises(UserError):
            TrainConfig(**wrong)  # type: ignore[arg-type]
