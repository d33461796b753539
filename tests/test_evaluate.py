"""AP of known answers, by class and by size; the confusion matrix; both scorers alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supernet.data.average_precision import score
from supernet.data.best_thresholds import best_thresholds
from supernet.data.detection_set import Crowd, DetectionSet, Record, evenly
from supernet.data.evaluate import confusion_matrix
from supernet.data.greedy_match import greedy_match, ious, shares_within
from supernet.data.mistakes import missed_by_size, mistakes, suspected_labels
from supernet.data.reliability import calibration_error, reliability
from supernet.data.scoring_memory import expected_mb, free_mb, warn_of_memory
from supernet.data.true_positives import hits_by_class
from supernet.errors import DataError

BOX = [10.0, 10.0, 50.0, 40.0]


def known(path: Path) -> DetectionSet:
    """Two images of two classes: a cat on each, a dog on the second."""

    def corners(*boxes: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        found = np.array(boxes, dtype=np.float32)
        found[:, 2:] += found[:, :2]
        return found

    records = (
        Record(1, path / "1.jpg", 100, 200, corners(BOX), np.array([0])),
        Record(2, path / "2.jpg", 100, 200, corners(BOX, [100, 10, 20, 20]), np.array([0, 1])),
    )
    return DetectionSet(path, "val", path / "x.json", ("cat", "dog"), (3, 7), records)


def row(image: int, category: int, box: list[float], score: float) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


ROWS = [
    row(1, 3, BOX, 0.9),
    row(1, 3, [120.0, 50.0, 30.0, 30.0], 0.8),  # nothing is there
    row(2, 3, BOX, 0.7),
    row(2, 3, [100.0, 10.0, 20.0, 20.0], 0.6),  # a dog taken for a cat
    row(2, 7, [100.0, 10.0, 20.0, 20.0], 0.1),
]


def test_a_known_answer(tmp_path: Path) -> None:
    """The cats' precision is 1 up to recall 0.5, then 2/3: 51 and 50 of 101 points."""
    found = score(ROWS, known(tmp_path))
    metrics = found.metrics
    cats = (51 + 50 * 2 / 3) / 101
    assert metrics.ap_by_class == {"cat": pytest.approx(cats), "dog": pytest.approx(1.0)}
    assert [metrics.ap, metrics.ap50] == pytest.approx([(cats + 1) / 2] * 2)
    assert metrics.ap_small == pytest.approx(1.0) and metrics.ap_large == -1.0
    assert (metrics.ar1, metrics.ar10, metrics.ar100) == (1.0, 1.0, 1.0)
    assert found.precision_TRK.shape == (10, 101, 2)
    nothing = score([], known(tmp_path)).metrics
    assert nothing.ap == 0 and nothing.ap_by_class == {"cat": 0.0, "dog": 0.0}


def test_scores_are_held_against_the_share_that_is_right(tmp_path: Path) -> None:
    """Five detections in five bins: 0.9, 0.7 and 0.1 are right, 0.8 and 0.6 are not."""
    bins = reliability(hits_by_class(ROWS, known(tmp_path)))
    assert [(b.count, b.score, b.precision) for b in bins] == [
        (1, pytest.approx(score), right)
        for score, right in ((0.1, 1.0), (0.6, 0.0), (0.7, 1.0), (0.8, 0.0), (0.9, 1.0))
    ]
    assert calibration_error(bins) == pytest.approx((0.9 + 0.6 + 0.3 + 0.8 + 0.1) / 5)
    together = reliability(hits_by_class([*ROWS, row(1, 3, [0.0, 0, 5, 5], 0.65)], known(tmp_path)))
    assert [b.count for b in together] == [1, 2, 1, 1, 1] and together[1].precision == 0.0
    assert calibration_error(reliability(hits_by_class([], known(tmp_path)))) is None
    low = [row(1, 3, BOX, 0.01)]
    assert reliability(hits_by_class(low, known(tmp_path))) == [], "never reported by a network"


def test_mistakes_are_named_and_counted(tmp_path: Path) -> None:
    """A detection where nothing is, a dog taken for a cat; the second dog label is not found."""
    data = known(tmp_path)
    wrong = mistakes(ROWS, data)
    kinds = [[(m.kind, m.score) for m in image.mistakes] for image in wrong]
    assert kinds == [[("nothing there", 0.8)], [("wrong class", 0.6)]]
    assert [image.record.image_id for image in wrong] == [1, 2]
    assert missed_by_size(wrong, data) == {"cat": {"medium": (0, 2)}, "dog": {"small": (0, 1)}}
    ((record, suspect),) = suspected_labels(wrong)
    assert (record.image_id, suspect.found, suspect.truth) == (1, 0, None)
    nothing = mistakes([], data)
    assert [image.cost for image in nothing] == [2.0, 1.0], "the image with two objects first"
    assert missed_by_size(nothing, data)["cat"] == {"medium": (2, 2)}
    crowd = Crowd((115.0, 45.0, 155.0, 85.0), 0, 1600.0)
    crowded = replace(data, records=(replace(data.records[0], crowds=(crowd,)), data.records[1]))
    (left,) = mistakes(ROWS, crowded)
    assert [mistake.kind for mistake in left.mistakes] == ["wrong class"]


def test_a_detection_at_its_threshold_is_found(tmp_path: Path) -> None:
    """0.7 in float32 is less than 0.7, the threshold that is printed: it was reported missed."""
    data, exact = known(tmp_path), float(np.float32(0.7))
    rows = [row(2, 3, BOX, exact)]
    assert exact < 0.7
    assert mistakes(rows, data, {"cat": 0.7}) == mistakes(rows, data, {"cat": 0.6})


def test_missed_objects_have_the_size_that_ap_uses(tmp_path: Path) -> None:
    """An annotated area decides it; classes of one name are told apart."""
    data = known(tmp_path)
    tiny = replace(data.records[0], areas_px=np.full(len(data.records[0].labels), 500.0))
    data = replace(data.of((tiny,)), names=("pet", "pet"))
    labels = tiny.labels.tolist()
    assert missed_by_size(mistakes([], data), data) == {
        f"pet (id {data.category_ids[k]})": {"small": (labels.count(k),) * 2} if k in labels else {}
        for k in (0, 1)
    }


def test_a_part_of_a_set_is_spread_over_it() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7] and evenly(range(3), 4) == [0, 1, 2]


def test_a_class_is_reported_from_the_score_of_its_best_f1(tmp_path: Path) -> None:
    """Of the cats' four detections the first three have F1 4/5, the first 2/3."""
    data = known(tmp_path)
    assert best_thresholds(ROWS, data) == {"cat": 0.7, "dog": 0.1}
    assert best_thresholds([], data) == {"cat": None, "dog": None}
    assert best_thresholds(ROWS[1:2], data) == {"cat": None, "dog": None}, "none is right"
    exact = float(np.float32(0.7))
    (kept,) = (best_thresholds([row(2, 3, BOX, exact)], data)["cat"],)
    assert kept == 0.7 and np.float32(exact) >= np.float32(kept)
    tied = [row(1, 3, BOX, 0.9), row(1, 3, [120.0, 50.0, 30.0, 30.0], 0.9)]
    assert best_thresholds([*tied, row(2, 3, BOX, 0.4)], data)["cat"] == 0.4
    twice = [row(1, 3, BOX, 0.9), row(1, 3, BOX, 0.8), row(2, 3, BOX, 0.7)]
    assert best_thresholds(twice, data)["cat"] == 0.7, "an object is found once: F1 2/3, 1/2, 4/5"
    half = [10.0, 10.0, 50.0, 19.0]
    assert best_thresholds([row(1, 3, half, 0.9)], data)["cat"] is None, "IoU 0.475"
    assert best_thresholds(ROWS, replace(data, names=("cat", "cat")))["cat"] is None
    absent = replace(data, names=("cat", "dog", "owl"), category_ids=(3, 7, 9))
    assert best_thresholds([*ROWS, row(1, 9, BOX, 0.9)], absent)["owl"] is None


def test_detections_in_a_crowd_count_neither_way(tmp_path: Path) -> None:
    data = known(tmp_path)
    crowded = replace(data.records[0], crowds=(Crowd((100.0, 40.0, 180.0, 90.0), 0, 4000.0),))
    rows = [*ROWS[:2], row(2, 3, BOX, 0.3), row(2, 3, [0.0, 60.0, 9.0, 9.0], 0.4)]
    assert best_thresholds(rows, data)["cat"] == 0.9
    assert best_thresholds(rows, data.of((crowded, data.records[1])))["cat"] == 0.3


def test_confusions(tmp_path: Path) -> None:
    """The dog was taken for a cat; one cat is where nothing is; the sure ones count."""
    counts = confusion_matrix(ROWS, known(tmp_path))
    assert counts.tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    counts = confusion_matrix(ROWS[2:3], known(tmp_path))
    assert counts.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    data = known(tmp_path)
    crowded = replace(data.records[0], crowds=(Crowd((100.0, 40.0, 180.0, 90.0), 0, 4000.0),))
    within = row(crowded.image_id, 3, [110.0, 50.0, 20.0, 20.0], 0.9)
    assert confusion_matrix([within], data)[-1].sum() == 1
    assert confusion_matrix([within], data.of((crowded, data.records[1])))[-1].sum() == 0


def test_another_scorer_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    import supernet.data.average_precision as evaluate

    rng = np.random.default_rng(0)
    rows = [
        row(int(rng.integers(1, 3)), int(rng.choice([3, 7])), [*rng.uniform(0, 60, 4)], s)
        for s in rng.random(200)
    ]
    data = known(tmp_path)
    fast = evaluate.score(rows + ROWS, data)
    assert fast.by == "faster-coco-eval"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_evaluator", lambda: (COCO, COCOeval, "pycocotools"))
        slow = evaluate.score(rows + ROWS, data)
    assert fast.metrics.rounded() == slow.metrics.rounded()
    assert np.allclose(fast.precision_TRK, slow.precision_TRK)


def test_classes_in_groups_score_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(ROWS, known(tmp_path))
    monkeypatch.setattr("supernet.data.average_precision.PAIRS", 1)
    parts = score(ROWS, known(tmp_path))
    assert parts.metrics == whole.metrics
    assert np.array_equal(parts.precision_TRK, whole.precision_TRK)


def test_the_summary_is_that_of_pycocotools(tmp_path: Path) -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = known(tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        row(int(rng.integers(1, 3)), int(rng.choice([3, 7])), [*rng.uniform(5, 60, 4)], s)
        for s in rng.random(50)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.ground_truth
        truth.createIndex()
        scoring = COCOeval(truth, truth.loadRes([*rows, *ROWS]), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    m = score([*rows, *ROWS], data).metrics
    sizes = (m.ap_small, m.ap_medium, m.ap_large)
    found = [m.ap, m.ap50, m.ap75, *sizes, m.ar1, m.ar10, m.ar100]
    assert found == pytest.approx(scoring.stats[:9].tolist())


def test_a_split_without_objects_has_no_ap(tmp_path: Path) -> None:
    data = known(tmp_path)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    bare = data.of([replace(r, boxes_xyxy=empty[0], labels=empty[1]) for r in data.records])
    assert score([], bare).metrics.ap == score(ROWS, bare).metrics.ap == -1.0
    recorded = score(ROWS, bare).metrics.rounded()
    assert recorded.pop("images") == len(bare.records)
    assert recorded.pop("ap_by_class") == {"cat": None, "dog": None}
    assert set(recorded.values()) == {None}


def test_many_classes_need_little_memory(tmp_path: Path) -> None:
    """A list for each pair of an image and a class was kept: 5.8 GB for 365 classes."""
    import tracemalloc

    K, images = 500, 12
    rng = np.random.default_rng(0)
    records, rows = [], []
    for i in range(images):
        labels = rng.integers(0, K, 5)
        low = rng.uniform(0, 50, (5, 2))
        boxes = np.hstack([low, low + 30]).astype(np.float32)
        records.append(Record(i, tmp_path / f"{i}.jpg", 100, 100, boxes, labels))
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            rows.append(row(i, label, [x0, y0, x1 - x0, y1 - y0], 0.5))
    names = tuple(f"c{i}" for i in range(K))
    data = DetectionSet(tmp_path, "val", tmp_path / "x", names, tuple(range(K)), tuple(records))
    tracemalloc.start()
    assert score(rows, data).metrics.ap == pytest.approx(1.0)
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


def test_classes_of_one_name_have_a_row_each(tmp_path: Path) -> None:
    data = replace(known(tmp_path), names=("cat", "cat"))
    by_class = score(ROWS, data).metrics.ap_by_class
    assert list(by_class) == ["cat (id 3)", "cat (id 7)"]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """A val split that numbers or lists its classes otherwise is scored by their names."""
    data = known(tmp_path)
    again = data.numbered_as(("bird", "dog", "cat"))
    assert again.names == ("bird", "dog", "cat") and len(set(again.category_ids)) == 3
    assert [r.labels.tolist() for r in again.records] == [[2], [2, 1]]
    # Its category ids fall: the scorers, which sort them, gave each class another's AP.
    by_class, as_numbered = (score(ROWS, d).metrics.ap_by_class for d in (again, data))
    assert by_class == {"bird": -1.0, **as_numbered} and list(by_class) == list(again.names)
    assert data.numbered_as(data.names) is data
    with pytest.raises(DataError, match=r"not trained for: dog \(1 boxes\); it knows cat"):
        data.numbered_as(("cat",))
    without = data.of(data.records[:1])  # no dog in it
    assert without.numbered_as(("cat",)).records[0].labels.tolist() == [0]
    with pytest.raises(DataError, match="two classes have one name"):
        data.numbered_as(("cat", "cat"))


def drawn(path: Path, classes: int = 12, images: int = 20) -> tuple[DetectionSet, list[Any]]:
    """Draw objects of many classes, and detections that are near them, elsewhere or mistaken."""
    rng = np.random.default_rng(1)
    records, rows = [], []
    for number in range(1, images + 1):
        labels = rng.integers(0, classes, 6)
        low = rng.uniform(0, 300, (6, 2))
        boxes = np.hstack([low, low + rng.uniform(5, 150, (6, 2))]).astype(np.float32)
        records.append(Record(number, path / f"{number}.jpg", 500, 500, boxes, labels))
        for box, label in zip(boxes, labels, strict=True):
            x0, y0, x1, y1 = (float(v) for v in box + rng.normal(0, 4, 4))
            for guess in (int(label), int(rng.integers(0, classes))):
                rows.append(row(number, guess, [x0, y0, x1 - x0, y1 - y0], float(rng.random())))
    names = tuple(f"c{index}" for index in range(classes))
    ids = tuple(range(classes))
    return DetectionSet(path, "val", path / "x.json", names, ids, tuple(records)), rows


@pytest.mark.parametrize("group", [1, 5, 7])
def test_any_groups_of_classes_score_alike(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rows = drawn(tmp_path)
    whole = score(rows, data)
    assert 0 < whole.metrics.ap < 1 and whole.metrics.ap_small > -1
    monkeypatch.setattr("supernet.data.average_precision.GROUP", group)
    parts = score(rows, data)
    assert parts.metrics == whole.metrics
    assert np.array_equal(parts.precision_TRK, whole.precision_TRK)


def test_memory_is_reported_where_it_is_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = known(tmp_path)
    warn_of_memory(data)
    assert not capsys.readouterr().err
    assert expected_mb(5000, 1000) < expected_mb(5000, 365) < expected_mb(5000, 1)
    assert expected_mb(5000, 1) == expected_mb(5000, 20), "they are scored at once"
    monkeypatch.setattr("supernet.data.scoring_memory.free_mb", lambda: 0.2)
    warn_of_memory(data)
    assert "2 images of val may take 1 MiB of memory, 0 MiB are free" in capsys.readouterr().err


def test_free_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable:    4194304 kB\n")
    monkeypatch.setattr("supernet.data.scoring_memory.MEMINFO", meminfo)
    monkeypatch.setattr("supernet.data.scoring_memory.CGROUP", tmp_path)
    assert free_mb() == 4096
    (tmp_path / "memory.current").write_text(f"{2**30}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_mb() == 4096
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    assert free_mb() == 2048
    monkeypatch.setattr("supernet.data.scoring_memory.MEMINFO", tmp_path / "absent")
    monkeypatch.setattr("supernet.data.scoring_memory.CGROUP", tmp_path / "absent")
    assert free_mb() is None


def test_each_object_is_matched_once_and_best_first() -> None:
    overlaps = np.array([[0.6, 0.7], [0.4, 0.9], [0.55, 0.1], [0.5, 0.0]])
    assert greedy_match(overlaps, 0.5).tolist() == [1, -1, 0, -1]
    assert greedy_match(np.zeros((2, 0)), 0.5).tolist() == [-1, -1]
    box, half = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 20, 10]])
    assert shares_within(box, half).tolist() == [[0.5]]
    assert ious(box, half)[0, 0] == pytest.approx(0.25)
