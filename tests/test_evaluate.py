"""AP of known answers, by class and by size; the confusion matrix; both scorers alike."""

from pathlib import Path

import numpy as np
import pytest

from supernet.coco import DetectionSet, Record
from supernet.evaluate import confusion_matrix, score

BOX = [10.0, 10.0, 50.0, 40.0]


def known(path: Path) -> DetectionSet:
    """Two images of two classes: a cat on each, a dog on the second."""
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box}
            | {"area": box[2] * box[3], "iscrowd": 0}
            for n, (i, c, box) in enumerate(
                [(1, 3, BOX), (2, 3, BOX), (2, 7, [100.0, 10.0, 20.0, 20.0])], 1
            )
        ],
    }  # fmt: skip

    def corners(*boxes: list[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        found = np.array(boxes, dtype=np.float32)
        found[:, 2:] += found[:, :2]
        return found

    records = (
        Record(1, path / "1.jpg", 100, 200, corners(BOX), np.array([0])),
        Record(2, path / "2.jpg", 100, 200, corners(BOX, [100, 10, 20, 20]), np.array([0, 1])),
    )
    return DetectionSet(
        path, "val", path / "x.json", ("cat", "dog"), (3, 7), records, ground_truth=truth
    )


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


def test_confusions(tmp_path: Path) -> None:
    """The dog was taken for a cat; one cat is where nothing is; the sure ones count."""
    counts = confusion_matrix(ROWS, known(tmp_path))
    assert counts.tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    counts = confusion_matrix(ROWS[2:3], known(tmp_path))
    assert counts.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_another_scorer_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    import supernet.evaluate as evaluate

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
