"""Splits that are refused before anything is trained, matched by class name, or without objects."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from supernet.checkpoint import read_info
from supernet.data.detection_set import DetectionSet

from .command_line import fails, run
from .test_annotations import note, write

TINY = ["--architecture", "pico", "--input-size", "64x96", "--epochs", 1, "--batch-size", 2]


def pair(root: Path, val: list[dict[str, Any]] | None, **head: Any) -> Path:
    """Write a train split of cats and dogs, and a val split."""
    write(root, [note(), note(2, 7, bbox=[60, 5, 20, 20])])
    if val is not None:
        write(root, val, "val", **head)
    return root


def test_val_is_matched_by_name_or_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    root = pair(tmp_path / "a", [note(1, 2), note(2, 1)], categories=names)
    judged: list[DetectionSet] = []

    def keep(data: DetectionSet) -> Any:
        judged.append(data)
        return lambda _: {"ap": 0.0}

    monkeypatch.setattr("heat.stages.train.judge_on", keep)
    code, _, errors = run("train", "--data", root, *TINY, "--out", tmp_path / "run")
    assert code == 0, errors
    assert judged[0].names == ("cat", "dog")
    assert [r.labels.tolist() for r in judged[0].records] == [[0], [1]]

    names = [{"id": 3, "name": "cat"}, {"id": 7, "name": "horse"}]
    root = pair(tmp_path / "b", [note(2, 7)], categories=names)
    line = fails(2, "train", "--data", root, *TINY, "--out", tmp_path / "other")
    assert "classes that the model was not trained for: horse (1 boxes)" in line
    assert not (tmp_path / "other").exists()


def test_a_broken_val_split_is_an_error_and_a_missing_one_is_not(tmp_path: Path) -> None:
    root = pair(tmp_path / "a", [])
    (root / "annotations" / "instances_val.json").write_text("{")
    line = fails(2, "train", "--data", root, *TINY, "--out", tmp_path / "run")
    assert "instances_val.json is not valid JSON" in line
    command = ("train", "--data", root, *TINY, "--out", tmp_path / "run")
    assert run(*command, "--eval-every", 0)[0] == 0  # then it is not read
    code, _, errors = run(
        "train", "--data", pair(tmp_path / "b", None), *TINY, "--out", tmp_path / "other"
    )
    assert code == 0, errors


def test_a_val_split_without_objects_has_ap_none(tmp_path: Path) -> None:
    """In training, evaluation, export and report: it was 0 or -1 by chance."""
    root, out = pair(tmp_path / "a", []), tmp_path / "run"
    code, result, errors = run("train", "--data", root, *TINY, "--out", out)
    assert code == 0 and errors.count("warning: no object in val: AP none") == 1, errors
    assert "best" not in result
    (epoch,) = read_info(out / "train" / "weights.safetensors").facts["history"]
    assert "ap" not in epoch and "ap50" not in epoch
    assert not (out / "train" / "best.safetensors").exists()

    code, result, errors = run("export", "--threads", 1, "--out", out)
    assert code == 0 and result["accuracy_check"] is None, errors
    assert "AP none, it is not compared" in errors
    for bundle in ([], ["--bundle", result["bundle"]]):
        code, scored, errors = run("eval", *bundle, "--out", out)
        assert code == 0 and "AP none" in errors, errors
        metrics = [key for key in scored if key.startswith(("ap", "ar")) and key != "ap_by_class"]
        assert len(metrics) == 9 and all(scored[key] is None for key in metrics)
        assert scored["ap_by_class"] == {"cat": None, "dog": None}
    code, result, errors = run("report", "--out", out)
    page = Path(result["report"]).read_text()
    assert code == 0 and "AP50 none, AP75 none; objects by size: small none" in page
    assert ": -1" not in (out / "run.json").read_text()


@pytest.mark.parametrize(
    ("annotations", "crowds"),
    [([note(iscrowd=1)], ", 1 crowd regions"), ([], ""), ([note(bbox=[10, 20, 0, 30])], "")],
)
def test_every_training_command_refuses_a_set_without_boxes(
    tmp_path: Path, annotations: list[dict[str, Any]], crowds: str
) -> None:
    """Before anything else is done: `heat build` would profile first."""
    root = write(write(tmp_path / "a", annotations), [note()], "val")
    message = f"no box to train on in the 2 images of train{crowds} (heat data check"
    for command in (["train", *TINY], ["supernet"], ["build", "--target-fps", 10]):
        line = fails(2, *command, "--data", root, "--out", tmp_path / "run")
        assert message in line
        assert not (tmp_path / "run").exists()


def test_a_yolo_set_without_labels_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for name in ("a", "b"):
            path = root / "images" / split / f"{name}.png"
            cv2.imwrite(str(path), np.full((100, 200, 3), 90, np.uint8))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    for command in (["train", *TINY], ["supernet"], ["build", "--target-fps", 10]):
        line = fails(2, *command, "--data", root, "--out", tmp_path / "run")
        assert "no box to train on in the 2 images of train" in line


def test_a_val_split_with_other_categories_is_scored(tmp_path: Path) -> None:
    """Fewer, more, in other numbers and another order: an IndexError at the first score."""
    more = [{"id": 90, "name": "horse"}, {"id": 41, "name": "dog"}, {"id": 50, "name": "cow"}]
    root = pair(tmp_path / "a", [note(1, 41), note(2, 41)], categories=more)
    out = tmp_path / "run"
    code, result, errors = run("train", "--data", root, *TINY, "--out", out)
    assert code == 0 and 0 <= result["best"]["ap"] <= 1, errors
    code, scored, errors = run("eval", "--data", root, "--out", out)
    assert code == 0 and scored["ap_by_class"]["cat"] is None, errors
    assert scored["ap"] == scored["ap_by_class"]["dog"] == result["best"]["ap"]


def test_build_reads_its_val_split_before_anything_else(tmp_path: Path) -> None:
    root, out = pair(tmp_path / "a", [note()]), tmp_path / "run"
    command = ("build", "--target-fps", 10, "--data", root, "--out", out)
    file = root / "annotations" / "instances_val.json"
    file.write_text('{"images": [')
    assert "instances_val.json is not valid JSON" in fails(2, *command)
    write(root, [note(1, 1)], "val", categories=[{"id": 1, "name": "horse"}])
    assert "not trained for: horse (1 boxes)" in fails(2, *command)
    file.unlink()
    assert "has no split 'val'" in fails(2, *command)
    assert not out.exists()


def test_eval_matches_classes_by_name(tmp_path: Path) -> None:
    """A val split in another order was refused, or scored as other classes."""
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    root = pair(tmp_path / "a", [note(1, 2), note(2, 1)], categories=names)
    out = ("--out", tmp_path / "run")
    assert run("train", "--data", root, *TINY, "--eval-every", 0, *out)[0] == 0
    code, result, errors = run("eval", "--data", root, *out)
    assert code == 0, errors
    assert list(result["ap_by_class"]) == ["cat", "dog"]
    other = [{"id": 1, "name": "horse"}, {"id": 2, "name": "cat"}]
    root = pair(tmp_path / "b", [note(1, 1)], categories=other)
    assert "not trained for: horse (1 boxes)" in fails(2, "eval", "--data", root, *out)
