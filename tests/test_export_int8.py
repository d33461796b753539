"""`heat export --precision int8`: what it is calibrated and judged on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploy.quantize import quantize
from heat.spaces import search_space
from heat.stages.network import load_network
from heat.thinning import judging
from heat.thinning.candidates import Candidate, open_search
from heat.thinning.judging import images_of, judge_of, pixels_digest
from heat.thinning.limits import Limits
from heat.thinning.moves import State, ThinningRules
from heat.thinning.proxies import ApDropBy
from heat.thinning.source import Source
from heat.workspace import Workspace
from latency_tables.devices import declared
from supernet.data.coco import load_split
from supernet.data.shapes import draw
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import Supernet
from supernet.letterbox import read_image
from tests.command_line import run
from tests.workspaces import SMALL_SPACE


def test_int8_without_labels_claims_nothing(
    network: Detector, capsys: pytest.CaptureFixture[str], shapes: Path
) -> None:
    pixels = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    plan, attempts = quantize(network, [pixels], None, 1.0)
    assert plan.ranges and not plan.kept and attempts == []
    assert "points lost" not in capsys.readouterr().err
    data = load_split(shapes, "val")
    empty = [replace(r, boxes_xyxy=r.boxes_xyxy[:0], labels=r.labels[:0]) for r in data.records]
    assert judge_of(data, list(data.names), network) is not None
    assert judge_of(data.of(empty), list(data.names), network) is None
    assert "AP none, it is not compared" in capsys.readouterr().err


def test_what_is_judged_is_spread_over_the_split(
    trained: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a set sorted by class the first images have the first class only."""
    network, data = load_network(Workspace(trained)).network, load_split(shapes, "train")
    ids = [record.image_id for record in data.records]
    monkeypatch.setattr(judging, "JUDGED_IMAGES", 2)
    judge = judge_of(data, list(data.names), network)
    assert judge is not None
    assert [record.image_id for record in judge.data.records] == [ids[0], ids[len(ids) // 2]]
    last = read_image(data.records[len(ids) // 2].path)
    assert last is not None and np.array_equal(images_of(data, None, 2)[1], last)


def test_an_int8_export_on_images_without_labels_names_no_loss(
    thinned: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(str(photos / f"{index}.png"), draw(rng).pixels)
    asked = ["--network", "thinned", "--precision", "int8", "--images", photos, "--threads", 1]
    code, exported, errors = run("export", *asked, "--out", thinned)
    assert code == 0, errors
    assert "points lost" not in errors and "what INT8 loses is not known" in errors
    assert exported["precision"] == "int8" and exported["accuracy_check"] is None
    card = json.loads((Path(exported["bundle"]) / "card.json").read_text())
    assert card["calibration"]["images"] == 3 and len(card["calibration"]["sha256"]) == 64


def test_the_images_of_an_int8_network_are_part_of_its_evaluation(
    shapes: Path, tmp_path: Path
) -> None:
    """A replaced image of the same size in bytes was not noticed: the old evaluation was kept."""
    root = shutil.copytree(shapes, tmp_path / "data")
    for path in (root / "train").iterdir():  # without compression: all of one size
        pixels = cv2.imread(str(path))
        path.write_bytes(cv2.imencode(".bmp", pixels)[1].tobytes())
    space = search_space("micro", input_size=(96, 128), num_classes=4)
    torch.manual_seed(0)
    supernet = Supernet(space).eval()
    source = Source(supernet, supernet.logits(), "digest")
    run("profile", "--device", "cpu-i7", "--estimate", *SMALL_SPACE, "--out", tmp_path)
    form = Candidate(space, (declared("cpu-i7"),), (Limits(target_fps=1.0),))

    def evaluations(by: ApDropBy = "mass") -> tuple[int, str]:
        data = load_split(root, "train")
        opened = (Workspace(tmp_path), form, source, data, by, ThinningRules(), True)
        with open_search(*opened) as search:
            assert search.evaluations is not None and search.evaluations._journal is not None
            known = len(search.evaluations._journal)
            search.evaluations.quality(State.full(space), "int8")
            return known, search.based_on

    assert evaluations()[0] == 0
    known, mass = evaluations()
    assert known == 1
    by_loss = evaluations("loss")[1]
    data = load_split(root, "train")
    path = data.records[3].path  # one that ranges of activations are calibrated on
    pixels = cv2.imread(str(path))
    path.write_bytes(cv2.imencode(".bmp", 255 - pixels)[1].tobytes())
    assert load_split(root, "train").digest == data.digest
    known, again = evaluations()
    assert known == 0 and again == mass
    assert evaluations("loss")[1] != by_loss, "a study of other images is another study"


def test_a_bundle_names_the_images_it_was_calibrated_on() -> None:
    rng = np.random.default_rng(0)
    images = [draw(rng).pixels for _ in range(2)]
    first = pixels_digest(images)
    assert pixels_digest([image.copy() for image in images]) == first
    images[1][0, 0, 0] ^= 1
    assert pixels_digest(images) != first
    assert pixels_digest([images[0].reshape(-1)]) != pixels_digest([images[0]])
