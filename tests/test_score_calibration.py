"""Scores that are probabilities: fitted, folded into every graph, recorded, and left off."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.edge.detect import Bundle
from deploy.edge.postprocess import Postprocess
from deploy.edge.runtimes import open_session
from deploy.edge.track import Tracker
from deploy.export import export_bundle
from deploy.form import Form, decode_rule
from deploy.gate import torch_detect
from deploy.judge import Judge
from heat.stages.evaluate import evaluate_bundle, evaluate_checkpoint
from heat.stages.score_calibration import calibration_for, card_facts, recorded_calibration
from heat.workspace import Workspace
from supernet.checkpoint import CheckpointInfo, save_checkpoint
from supernet.data import score_calibration
from supernet.data.best_thresholds import best_thresholds
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet, Record
from supernet.data.evaluate import found_rows, score_rows
from supernet.data.reliability import calibration_error, reliability
from supernet.data.score_calibration import ScoreCalibration, calibrate, fit_scores
from supernet.data.true_positives import Hits, hits_by_class
from supernet.detr.detr import Detr
from supernet.errors import BundleError, UserError
from supernet.graph.calibrated import calibrated
from supernet.heatdetr.detector import Detector
from supernet.letterbox import letterbox
from supernet.network import build
from tests.test_thresholds import NAMES, labelled
from tests.toy_detr import SMALL, shaken

MAPS = ScoreCalibration((0.25, 1.7, 0.6), (-1.5, 0.4, 0.0))


def true_share(scores: np.ndarray, slope: float = 0.4, bias: float = -1.0) -> np.ndarray:
    """Return how often a detection of an over-confident detector is right."""
    return 1 / (1 + np.exp(-(slope * np.log(scores / (1 - scores)) + bias)))


def detections(counts: tuple[int, ...], seed: int = 0) -> list[Hits]:
    rng = np.random.default_rng(seed)
    found = []
    for count in counts:
        scores = rng.uniform(0.05, 0.999, count)
        right = rng.uniform(size=count) < true_share(scores)
        found.append(Hits(scores, right, max(1, int(right.sum()))))
    return found


def over_confident(folder: Path, images: int = 40) -> tuple[list[ResultRow], DetectionSet]:
    """Return a split of two classes, and detections on it that are right less often than scored."""
    rng = np.random.default_rng(1)
    rows: list[ResultRow] = []
    records = []
    for number in range(images):
        boxes, labels = [], []
        for place in range(20):
            label = int(rng.integers(2))
            score = float(np.float32(rng.uniform(0.05, 0.99)))
            corner = 20.0 * place
            rows.append(
                {
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [corner, 0.0, 15.0, 15.0],
                    "score": score,
                }
            )
            if rng.uniform() < true_share(np.array(score)):
                boxes.append([corner, 0.0, corner + 15, 15.0])
                labels.append(label)
        truth = np.array(boxes, np.float32).reshape(-1, 4)
        path = folder / f"{number}.jpg"
        records.append(Record(number, path, 100, 400, truth, np.array(labels, np.int64)))
    split = DetectionSet(folder, "val", folder / "x.json", ("a", "b"), (1, 2), tuple(records))
    return rows, split


def test_temperature_and_bias_are_found() -> None:
    maps = fit_scores(detections((6000, 3000)))
    assert maps is not None
    assert maps.temperatures == pytest.approx((1 / 0.4, 1 / 0.4), rel=0.1)
    assert maps.biases == pytest.approx((-1.0, -1.0), abs=0.1)
    assert fit_scores(detections((6000, 3000))) == maps, "the same each time"


def test_classes_with_few_detections_share_the_values_of_all() -> None:
    many = detections((2000,))[0]
    few = Hits(np.full(19, 0.9), np.ones(19, bool), 19)
    none = Hits(np.zeros(0), np.zeros(0, bool), 3)
    some = Hits(np.full(30, 0.9), np.ones(30, bool), 30)
    maps = fit_scores([many, few, none, some])
    assert maps is not None
    pooled = (maps.temperatures[1], maps.biases[1])
    assert (maps.temperatures[2], maps.biases[2]) == pooled
    own = [maps(np.array([0.9]), np.array([label]))[0] for label in range(4)]
    assert own[0] < own[1] < own[3] < 1.0, "held near the others: 30 right ones prove little"
    assert fit_scores([few, none]) is None, "nothing is wrong: no limit to the scores"


def test_every_map_rises() -> None:
    scores = np.linspace(0, 1, 400)
    backwards = detections((500,))[0]
    worse = Hits(backwards.scores, backwards.scores < 0.4, 100)  # the higher, the worse
    fitted = fit_scores([worse])
    assert fitted is not None
    for maps in (MAPS, fitted):
        for label in range(len(maps.temperatures)):
            found = maps(scores, np.full(400, label))
            assert np.all(np.diff(found) > 0) and found[0] == 0.0 and found[-1] == 1.0
            assert maps.inverse(found, np.full(400, label)) == pytest.approx(scores, abs=1e-6)


def test_calibration_lowers_the_error_and_keeps_ap(tmp_path: Path) -> None:
    rows, data = over_confident(tmp_path)
    done = calibrate(rows, data)
    assert done is not None and (done.images, done.detections) == (40, len(rows))
    assert done.error_before > 0.2 and done.error_after < 0.25 * done.error_before
    after = done.calibration.of_rows(rows, data)
    assert score_rows(after, data) == score_rows(rows, data)
    hits = hits_by_class(after, data)
    error = calibration_error(reliability(hits, done.calibration.least()))
    assert error is not None and error < 0.25 * done.error_before
    # The threshold of the best F1 is that of the same detection.
    before, now = best_thresholds(rows, data), best_thresholds(after, data)
    for label, name in enumerate(data.names):
        raw, own = before[name], now[name]
        assert raw is not None and own is not None
        assert float(done.calibration(np.array([raw]), np.array([label]))[0]) == pytest.approx(own)


def test_what_would_not_help_is_left_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, data = over_confident(tmp_path)
    assert calibrate(rows[:25], data) is None, "too few"
    done = calibrate(rows, data)
    assert done is not None
    for before, after, helps in ((0.1, 0.1, False), (0.1, 0.2, False), (0.2, 0.1, True)):
        found = [before, after]
        monkeypatch.setattr(
            "supernet.data.score_calibration.calibration_error",
            lambda *_, found=found: found.pop(0),
        )
        assert (calibrate(rows, data) is not None) is helps


@pytest.mark.parametrize("head", ["nms", "voted", "one-to-one"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graphs_give_the_scores_of_torch(
    network: Detector, head: str, padded: bool, runtime: str
) -> None:
    torch.manual_seed(0)
    own = Detector(network.architecture.with_(head=head)).eval()  # type: ignore[arg-type]
    own.load_state_dict(network.state_dict(), strict=False)
    own.decode.calibration = MAPS
    image = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8)
    model = own.to_onnx(padded=padded).SerializeToString()
    with torch.no_grad():
        expected = own.detect(image)[0]
    outputs = open_session(runtime, model, 1).run({"image": image.numpy()})
    scores, labels = outputs[1].reshape(-1), outputs[2].reshape(-1)
    kept = scores > 0  # a padded row stays at 0
    order = np.argsort(-scores[kept], kind="stable")
    assert kept.sum() == len(expected.scores) > 3
    assert scores[kept][order] == pytest.approx(expected.scores.numpy(), abs=1e-5)
    # Equal scores may change places.
    assert np.sort(labels[kept]).tolist() == sorted(expected.labels.tolist())
    own.decode.calibration = None
    with torch.no_grad():
        plain = calibrated(own.detect(image)[0], MAPS)
    assert torch.equal(plain.scores, expected.scores), "after the selection, which stays"


@pytest.mark.parametrize("family", ["detr", "sam-detr"])
def test_graphs_of_detrs_family_too(family: str) -> None:
    torch.manual_seed(0)
    own = shaken(build(SMALL.with_(family=family))).eval()
    maps = ScoreCalibration((0.5, 0.7, 0.9, 1.5, 2.0), (-1.0, 0.0, 1.0, 0.5, -0.5))
    own.decode.calibration = maps  # type: ignore[union-attr, assignment]
    image = torch.randint(0, 256, (1, 96, 160, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = own.detect(image)[0]  # type: ignore[operator]
    model = own.to_onnx().SerializeToString()  # type: ignore[operator, union-attr]
    for runtime in ("onnxruntime", "openvino"):
        scores = open_session(runtime, model, 1).run({"image": image.numpy()})[1]
        assert np.sort(scores)[::-1] == pytest.approx(expected.scores.numpy(), abs=1e-5)
    assert isinstance(own, Detr) == (family == "detr")


@pytest.fixture
def spread(network: Detector) -> Detector:
    """The network of random weights, its scores spread."""
    with torch.no_grad():
        network.units["head"].cls.weight *= 8  # type: ignore[operator, union-attr]
    return network


def test_a_raw_bundle_decodes_alike(spread: Detector) -> None:
    spread.decode.calibration = MAPS
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    model = spread.to_onnx(raw=True).SerializeToString()
    outputs = open_session("onnxruntime", model, 1).run({"image": pixels})
    _, scores, _ = Postprocess(decode_rule(spread), (96, 128))(*outputs)
    with torch.no_grad():
        expected = spread.detect(torch.from_numpy(pixels))[0]
    assert np.sort(scores)[::-1] == pytest.approx(expected.scores.numpy(), abs=1e-5)


def test_a_bundle_is_calibrated_and_says_so(spread: Detector, tmp_path: Path) -> None:
    """Its thresholds are of calibrated scores; cards without, or with a damaged one, are known."""
    data = labelled(spread, tmp_path / "images")
    judge = Judge.of(torch_detect(spread), data)
    spread.decode.calibration = MAPS
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    done = export_bundle(
        spread, tmp_path / "bundle", Form(), names=NAMES, images=[image],
        facts={"trained": True, "target_fps": None}, judge=judge,
    )  # fmt: skip
    path = done.folder / "card.json"
    card = json.loads(path.read_text())
    assert card["decode"]["calibration"] == MAPS.rule()
    assert card["accuracy_check"]["drop"] == 0.0
    assert done.parity.max_score < 1e-3
    expected = best_thresholds(found_rows(torch_detect(spread), data, progress=False), data)
    assert card["thresholds"] == {
        name: None if score is None else pytest.approx(score, abs=1e-5)
        for name, score in expected.items()
    }
    with Bundle(done.folder) as bundle:
        found = bundle.detect(image, score=0.0)
        assert np.all(np.diff(found.scores) <= 0), "best first, though the graph selects before"
        pixels = letterbox(image, (96, 128))[0]
        with torch.no_grad():
            exact = spread.detect(torch.from_numpy(pixels)[None])[0]
        assert found.scores == pytest.approx(exact.scores.numpy(), abs=1e-5)
    result = evaluate_bundle(Workspace(tmp_path / "run"), done.folder, data)
    assert result["score_calibration"] == MAPS.rule()
    for damaged in ({"temperatures": [1.0]}, {**MAPS.rule(), "temperatures": [0.0, 1.0, 1.0]}, 3):
        card["decode"]["calibration"] = damaged
        path.write_text(json.dumps(card))
        with pytest.raises(BundleError, match=r"calibration.*export again"):
            Bundle(done.folder)
    del card["decode"]["calibration"]  # as bundles of earlier versions
    path.write_text(json.dumps(card))
    with Bundle(done.folder) as bundle:
        assert len(bundle.detect(image, score=0.0).scores) == len(found.scores)


def test_a_calibration_is_kept_for_the_network_that_it_is_of(
    spread: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(score_calibration, "FEWEST", 1)
    workspace = Workspace(tmp_path / "run")
    data = labelled(spread, tmp_path / "images")
    untrained = workspace.architecture
    spread.architecture.save(untrained)
    with pytest.raises(UserError, match="untrained"):
        workspace.record("thin", {})
        evaluate_checkpoint(workspace, data, calibrate=True)
    info = CheckpointInfo(
        kind="detector", description=spread.architecture.to_json(), names=NAMES, epoch=1, epochs=1
    )
    weights = workspace.train / "weights.safetensors"
    save_checkpoint(weights, spread.state_dict(), info)
    plain = evaluate_checkpoint(workspace, data)
    assert plain["score_calibration"] is None
    fitted = evaluate_checkpoint(workspace, data, calibrate=True)
    assert fitted["ap"] == plain["ap"] and fitted["score_calibration"] is not None
    assert "D-ECE" in capsys.readouterr().err
    later = evaluate_checkpoint(workspace, data)
    assert later["score_calibration"] == fitted["score_calibration"]
    assert plain["calibration_error_elsewhere"] is None
    elsewhere = evaluate_checkpoint(workspace, replace(data, split="test"))
    assert elsewhere["calibration_error_elsewhere"] is None, "it was fitted on val"
    for key in ("ap", "calibration_error"):
        assert later[key] == pytest.approx(fitted[key], abs=1e-3), key
    found = calibration_for(workspace, spread, weights, Form(), None, None)
    assert found is not None and found[0].calibration.rule() == fitted["score_calibration"]
    facts = card_facts(found[0], NAMES, found[1])
    assert facts["split"] == "val" and facts["images"] == 4 and facts["fitted_to"] == "torch"
    assert facts["error_after"] < facts["error_before"]
    assert fitted["calibration_error_elsewhere"] == facts["error_after"]
    with pytest.MonkeyPatch.context() as patch:  # too few images, say
        patch.setattr("heat.stages.evaluate.fit", lambda *_: None)
        assert evaluate_checkpoint(workspace, data, calibrate=True)["score_calibration"] is None
    assert evaluate_checkpoint(workspace, data)["score_calibration"] is None, (
        "the older one is gone"
    )
    evaluate_checkpoint(workspace, data, calibrate=True)
    save_checkpoint(weights, {k: v * 1.01 for k, v in spread.state_dict().items()}, info)
    assert recorded_calibration(workspace, spread, weights) is None
    assert "other weights" in capsys.readouterr().err


def test_half_hidden_objects_keep_their_track() -> None:
    """A third of the head's limit: as a third of a calibrated one they would all be lost."""
    limits = MAPS(np.array([0.6, 0.6, 0.6]), np.arange(3)).astype(np.float32)
    rule = MAPS.rule()
    box = np.array([[10.0, 10.0, 50.0, 60.0]])
    label = np.array([0])
    high, low = (MAPS(np.array([score]), label) for score in (0.9, 0.25))
    assert low[0] < limits[0] / 3
    for maps, kept in ((rule, 1), (None, 0)):
        tracker = Tracker(25.0, limits, maps)
        assert len(tracker.update(box, high, label)[0]) == 1
        assert len(tracker.update(box, low, label)[0]) == kept
