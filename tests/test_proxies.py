"""Evaluations of a supernet's states, and the check that admits a proxy."""

import math
from pathlib import Path

import pytest
import torch

from heat.spaces import search_space
from heat.stages.supernet import train_supernet
from heat.thinning.evaluation import Evaluations, split_held_out
from heat.thinning.journal import Journal
from heat.thinning.moves import State, ThinningRules
from heat.thinning.proxies import choose, judge, random_moves, spearman
from heat.workspace import Workspace
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import score_rows
from supernet.errors import DataError, UserError
from supernet.heatdetr.fake_quant import simulate_int8
from supernet.heatdetr.recalibrate import recalibrate
from supernet.heatdetr.supernet import SearchConfig, Supernet
from supernet.train.recipes import SUPERNET
from tests.short_training import first_images

SPACE = search_space("micro", input_size=(96, 128), num_classes=4)


@pytest.fixture(scope="module")
def data(shapes: Path) -> DetectionSet:
    return load_split(shapes, "train")


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    network = Supernet(SPACE).eval()
    for _, mixture in network.mixtures():
        torch.nn.init.normal_(mixture.r)
        for parameter in mixture.operators.parameters():  # some branches begin as zero
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def evaluations(supernet: Supernet, data: DetectionSet, tmp_path: Path) -> Evaluations:
    journal = Journal(tmp_path / "readings.jsonl", "test")
    return Evaluations(supernet, SPACE, data, supernet.logits(), journal)


def test_a_state_differs_from_itself_in_nothing(evaluations: Evaluations) -> None:
    full = State.full(SPACE)
    assert evaluations.loss_rise(full, full) == 0.0
    assert evaluations.distance(full, full) == pytest.approx(0.0, abs=1e-3)
    assert evaluations.ap_drop(full, full) == 0.0


def test_a_supernet_of_few_images_says_what_is_kept_out(shapes: Path, tmp_path: Path) -> None:
    data = first_images(shapes, 2)
    with pytest.raises(DataError, match=r"1 of 2 images are kept out .* the others, 1 with"):
        train_supernet(Workspace(tmp_path), data, SPACE, SUPERNET, SearchConfig())


def test_features_move_further_the_more_is_cut(evaluations: Evaluations) -> None:
    full = State.full(SPACE)
    narrow, narrower = full.narrower(4), full.narrower(4).narrower(4)
    assert 0 < evaluations.distance(full, narrow) < evaluations.distance(full, narrower)
    assert evaluations.distance(full, full.without((3, 0))) > 0


def test_readings_are_kept(
    supernet: Supernet, data: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.jsonl"
    full = State.full(SPACE)
    first = Evaluations(supernet, SPACE, data, supernet.logits(), Journal(path, "x")).loss(full)
    again = Evaluations(supernet, SPACE, data, supernet.logits(), Journal(path, "x"))
    monkeypatch.setattr(Evaluations, "_evaluate", lambda *_: pytest.fail("evaluated again"))
    assert again.loss(full) == first


def test_held_out_images_have_their_own_ground_truth(data: DetectionSet) -> None:
    train, held = split_held_out(data)
    assert len(train.records) + len(held.records) == len(data.records)
    ids = {record.image_id for record in held.records}
    assert {image["id"] for image in held.ground_truth["images"]} == ids
    assert {note["image_id"] for note in held.ground_truth["annotations"]} <= ids
    rows: list[dict[str, object]] = [
        {
            "image_id": note["image_id"],
            "category_id": note["category_id"],
            "bbox": note["bbox"],
            "score": 0.9,
        }
        for note in held.ground_truth["annotations"]
    ]
    assert score_rows(rows, held).ap == pytest.approx(1.0)


def test_random_moves_only_ever_thin() -> None:
    torch.manual_seed(0)
    logits = Supernet(SPACE).logits()
    moves = random_moves(SPACE, logits, ThinningRules(), 40)
    assert len(moves) == 40 and moves == random_moves(SPACE, logits, ThinningRules(), 40)
    for before, after in moves:
        assert sum(after.widths) <= sum(before.widths)
        assert len(after.allowed) <= len(before.allowed)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 2, 3], [0, 0, 0]))


def test_a_proxy_is_judged_by_true_ap() -> None:
    torch.manual_seed(0)
    moves = random_moves(SPACE, Supernet(SPACE).logits(), ThinningRules(), 20)
    truth = {pair[1]: float(index) for index, pair in enumerate(moves)}
    drops = {
        "loss": lambda before, after: truth[after] ** 3,
        "mass": lambda before, after: -truth[after],
        "ap": lambda before, after: truth[after],
    }
    loss, mass = judge(drops, moves)
    assert loss.admitted and loss.spearman == pytest.approx(1.0)
    assert not mass.admitted and mass.spearman == pytest.approx(-1.0)


def test_what_is_admitted_is_printed(
    evaluations: Evaluations,
    supernet: Supernet,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unjudged = choose("auto", evaluations, SPACE, supernet.logits(), ThinningRules())
    assert unjudged.name == "loss" and not unjudged.verdicts
    assert "too little to judge proxies by" in capsys.readouterr().err
    monkeypatch.setattr(Evaluations, "ap_is_informative", True)
    chosen = choose("auto", evaluations, SPACE, supernet.logits(), ThinningRules())
    said = capsys.readouterr().err
    for proxy in ("loss", "features", "mass"):
        assert f"proxy {proxy}: Spearman" in said
    assert chosen.name in ("loss", "features", "mass", "ap")
    assert len(chosen.verdicts) == 3
    with pytest.raises(UserError, match="--ap-drop loss needs a trained supernet"):
        choose("loss", None, SPACE, supernet.logits(), ThinningRules())
    alone = choose("auto", None, SPACE, supernet.logits(), ThinningRules())
    assert alone.name == "mass"


def test_simulated_int8_is_near_and_not_equal(evaluations: Evaluations) -> None:
    network = evaluations.network(State.full(SPACE))
    images = torch.randint(0, 256, (4, 96, 128, 3), dtype=torch.uint8)
    recalibrate(network, [images])
    with torch.no_grad():
        exact = network.deployed()(images)[0]
        rounded = simulate_int8(network, [images])(images)[0]
    difference = (exact - rounded).abs().max()
    assert 0 < difference < 0.5 * exact.abs().max()
    full = State.full(SPACE)
    for precision in ("f32", "bf16", "int8"):
        assert all(map(math.isfinite, evaluations.quality(full, precision)))
