"""A backbone that learns classes of pictures, and detectors and supernets that start from it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from supernet.errors import CheckpointError, DataError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.train.pretraining import Classifier, load_backbone, load_image_folders

from .command_line import run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Red and blue pictures, which a mean tells apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in (("red", (0, 0, 200)), ("blue", (200, 0, 0))):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = np.clip(np.array(colour) + rng.integers(-40, 40, (50, 60, 3)), 0, 255)
                cv2.imwrite(str(folder / f"{index}.jpg"), image.astype(np.uint8))
    return tmp_path / "pictures"


def test_pretrain_and_train_from_it(pictures: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, result, errors = run(
        "pretrain", "--data", pictures, "--architecture", "pico", "--input-size", "64x64",
        "--epochs", 6, "--batch-size", 4, "--learning-rate", 2e-3, "--drop-path", 0, "--out", out,
    )  # fmt: skip
    assert code == 0, errors
    assert result["classes"] == 2 and result["top1"] == 1.0 and result["top5"] == 1.0
    code, result, errors = run(
        "train", "--data", shapes, "--architecture", "pico", "--input-size", "64x64", "--epochs", 1,
        "--eval-every", 0, "--backbone", out / "pretrain/weights.safetensors", "--out", out,
    )  # fmt: skip
    assert code == 0, errors
    loaded = result["backbone"]
    assert loaded["used"] > 50 and loaded["left_over"] == ["classes.bias", "classes.weight"]
    backbone = ("units.stem", "units.s1", "units.s2", "units.s3", "units.s4", "units.down")
    assert not any(key.startswith(backbone) for key in loaded["missing"])
    assert (out / "train/learning.svg").exists() and (out / "train/first-batches.jpg").exists()


def write_backbone(architecture: Architecture, path: Path) -> Classifier:
    from supernet.checkpoint import CheckpointInfo, save_checkpoint

    network = Classifier(architecture, 3)
    info = CheckpointInfo(
        kind="backbone",
        description=architecture.to_json(),
        names=("a", "b", "c"),
        epoch=1,
        epochs=1,
    )
    save_checkpoint(path, network.state_dict(), info)
    return network


def test_a_supernet_takes_each_operator_to_its_place(unit: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    source = write_backbone(unit.with_(blocks=("RS", "W", "R", "W")), path)
    space = SearchSpace(template=unit.with_(blocks=("R", "R", "R", "R")), positions=(2, 1, 1, 1))
    supernet = Supernet(space)
    loaded = load_backbone(path, supernet)
    keys = [key for key in source.state_dict() if key.startswith("trunk.units.s1_1.")]
    for key in keys:
        rest = key.removeprefix("trunk.units.s1_1.")
        assert torch.equal(
            supernet.state_dict()[f"units.s1_1.operators.2.{rest}"], source.state_dict()[key]
        )
    assert set(loaded.left_over) == {"classes.bias", "classes.weight"}
    assert any("operators.1" in key for key in loaded.missing)


def test_other_widths_are_of_another_shape(unit: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    write_backbone(unit, path)
    loaded = load_backbone(path, Detector(unit.with_(widths=(32, 32, 64, 96))))
    assert any(key.startswith("units.s4_") for key in loaded.other_shape)
    assert not set(loaded.other_shape) & set(loaded.missing)
    assert loaded.left_over == ("classes.bias", "classes.weight")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_backbone(tmp_path / "none", Detector(unit))


def test_folders_that_are_no_pictures(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_image_folders(tmp_path, "train")
    with pytest.raises(DataError, match="0 class folders: at least 2"):
        load_image_folders(pictures / "train", "red")
    with pytest.raises(DataError, match="has a class 'blue' that the training split does not have"):
        load_image_folders(pictures, "val", ["red", "green"])
    assert json.dumps(load_image_folders(pictures, "train").names)
