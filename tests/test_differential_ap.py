"""AP against the reference scorer, on random annotation files read from disk.

HEAT reads the file with its strange ids, groups classes and numbers annotations itself; pycocotools
gets the same objects, written plainly, all classes at once.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import supernet.data.average_precision as average_precision
from supernet.data.coco import load_split
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import result_rows

SETS = 200
HEIGHT, WIDTH = 220, 320


@dataclass(frozen=True)
class Drawn:
    """A random ground truth with detections; images and classes are numbered from 0."""

    image_ids: list[Any]
    category_ids: list[int]
    objects: list[dict[str, Any]]
    """image, label, bbox, crowd, and area where it is annotated."""
    found: list[tuple[int, int, list[float], float]]
    """image, label, bbox, score."""


def ids(kind: str, count: int, rng: np.random.Generator) -> list[Any]:
    """Return distinct ids in ascending order; texts in the order of the file."""
    numbers = {
        "from 0": np.arange(count),
        "sparse": rng.choice(10_000, count, replace=False),
        "large": 2**40 + rng.choice(10_000, count, replace=False),
        "below 0": rng.choice(10_000, count, replace=False) - 5_000,
        "text": np.arange(count),
        "digits": rng.choice(10_000, count, replace=False),
    }[kind]
    found: list[Any] = sorted(int(number) for number in numbers)
    if kind == "text":
        return [f"image {number}" for number in found]
    return [str(number) for number in found] if kind == "digits" else found


def drawn(seed: int, *, classes: int | None = None) -> Drawn:
    rng = np.random.default_rng(seed)
    images = int(rng.integers(1, 6))
    K = classes or int(rng.choice([1, 1, 2, 3, 5]))
    kinds = ["from 0", "sparse", "large", "below 0"]

    def box() -> list[float]:
        side = rng.choice([8, 40, 150])
        w, h = rng.integers(4, 4 * side, 2) / 4
        x, y = rng.integers(0, [int(4 * (WIDTH - w)), int(4 * (HEIGHT - h))]) / 4
        return [float(value) for value in (x, y, w, h)]

    objects: list[dict[str, Any]] = []
    found = []
    full = rng.random(images) < 0.75  # the others are empty
    for image in range(images):
        for _ in range(int(rng.integers(1, 9)) if full[image] else 0):
            thing = {"image": image, "label": int(rng.integers(K)), "bbox": box()}
            thing["crowd"] = bool(rng.random() < 0.15)
            if rng.random() < 0.5:
                share = rng.uniform(0.3, 1)
                thing["area"] = float(thing["bbox"][2] * thing["bbox"][3] * share)
            objects.append(thing)
            for _ in range(int(rng.integers(0, 3))):
                near = np.array(thing["bbox"]) + rng.integers(-8, 9, 4) / 4
                label = thing["label"] if rng.random() < 0.8 else int(rng.integers(K))
                near[2:] = np.maximum(near[2:], 0.25)
                found.append((image, label, near.tolist()))
        many = 130 if rng.random() < 0.05 else int(rng.integers(0, 5))
        found += [(image, int(rng.integers(K)), box()) for _ in range(many)]
    ties = rng.random() < 0.5
    scores = rng.integers(0, 40, len(found)) / 40 if ties else rng.random(len(found))
    return Drawn(
        ids(str(rng.choice([*kinds, "text", "digits"])), images, rng),
        ids(str(rng.choice(kinds)), K, rng),
        objects,
        [(*row, float(np.float32(score))) for row, score in zip(found, scores, strict=True)],
    )


def write(folder: Path, case: Drawn, rng: np.random.Generator) -> DetectionSet:
    """Write the set as an annotation tool may, and read it."""
    (folder / "val").mkdir(parents=True)
    (folder / "annotations").mkdir()
    names = [f"{index}.jpg" for index in range(len(case.image_ids))]
    for name in names:
        (folder / "val" / name).touch()
    annotations = []
    for index, thing in enumerate(case.objects):
        note: dict[str, Any] = {
            "image_id": case.image_ids[thing["image"]],
            "category_id": case.category_ids[thing["label"]],
            "bbox": thing["bbox"],
            "iscrowd": thing["crowd"] if rng.random() < 0.5 else int(thing["crowd"]),
        }
        if rng.random() < 0.8:
            note["id"] = int(rng.choice([index, 0, 7]))  # from 0, or not distinct
        if "area" in thing:
            note["area"] = thing["area"]
        annotations.append(note)
    images = [
        {"id": id, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for id, name in zip(case.image_ids, names, strict=True)
    ]
    classes = [{"id": id, "name": f"class {n}"} for n, id in enumerate(case.category_ids)]
    file = {"images": images, "annotations": annotations, "categories": classes}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(file))
    return load_split(folder, "val")


def rows_of(case: Drawn, data: DetectionSet) -> list[ResultRow]:
    rows: list[ResultRow] = []
    for image, record in enumerate(data.records):
        own = [row for row in case.found if row[0] == image]
        boxes = np.array([row[2] for row in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([row[3] for row in own], np.float32)
        labels = np.array([row[1] for row in own], np.int64)
        rows += result_rows(record, (boxes, scores, labels), data)
    return rows


def reference(case: Drawn) -> tuple[Any, Any]:
    """Return pycocotools' summary and its precision [T, R, K]."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [
            {"id": i, "width": WIDTH, "height": HEIGHT} for i in range(len(case.image_ids))
        ],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(len(case.category_ids))],
        "annotations": [
            {
                "id": n + 1, "image_id": o["image"], "category_id": o["label"] + 1,
                "bbox": o["bbox"], "iscrowd": int(o["crowd"]),
                "area": o.get("area", o["bbox"][2] * o["bbox"][3]),
            }
            for n, o in enumerate(case.objects)
        ],
    }  # fmt: skip
    found = [
        {"image_id": image, "category_id": label + 1, "bbox": list(box), "score": score}
        for image, label, box, score in sorted(case.found, key=lambda row: row[0])
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(found) if found else COCO()
        scoring = COCOeval(truth, results, "bbox")
        scoring.params.imgIds = sorted(truth.getImgIds())
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return scoring.stats[:9], scoring.eval["precision"][:, :, :, 0, -1]


def check(case: Drawn, folder: Path, seed: int, scorer: str) -> None:
    data = write(folder, case, np.random.default_rng(seed))
    assert data.problems == () and len(data.records) == len(case.image_ids)
    scored = average_precision.score(rows_of(case, data), data)
    assert scored.by == scorer
    stats, precision_TRK = reference(case)
    m = scored.metrics
    sizes = (m.ap_small, m.ap_medium, m.ap_large)
    assert [m.ap, m.ap50, m.ap75, *sizes, m.ar1, m.ar10, m.ar100] == pytest.approx(stats, abs=1e-9)
    np.testing.assert_allclose(scored.precision_TRK, precision_TRK, atol=1e-9)


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def scorer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """HEAT with each of the packages that it can score by."""
    if request.param == "pycocotools":
        monkeypatch.setattr(
            average_precision, "_evaluator", lambda: (COCO, COCOeval, "pycocotools")
        )
    else:
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    return str(request.param)


def test_random_sets_score_as_pycocotools_scores_them(scorer: str, tmp_path: Path) -> None:
    """Crowds, ids of all sorts, empty images, one class and several, tied scores."""
    for seed in range(SETS):
        try:
            check(drawn(seed), tmp_path / str(seed), seed, scorer)
        except Exception as error:
            raise AssertionError(f"set {seed}") from error


def test_a_thousand_classes_score_alike(scorer: str, tmp_path: Path) -> None:
    check(drawn(3, classes=1000), tmp_path, 3, scorer)
