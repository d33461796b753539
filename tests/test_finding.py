"""Tracks, tiles, labels and single boxes of `heat detect`."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.edge.cpu import cpu_model
from deploy.edge.detect import Found
from deploy.edge.labels import Labels
from deploy.edge.postprocess import suppressed
from deploy.edge.session import runtime_version
from deploy.edge.tiles import detect_tiled, tile_starts
from deploy.edge.track import Tracker, assign
from deploy.edge.work import DetectOptions, detect_stream
from supernet.data.coco import load_split
from supernet.errors import DataError, UserError
from supernet.letterbox import Image
from tests.fake_videos import FakeBundle, detect, write_video


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Found:
    return Found(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32),
        np.array(labels, np.int64), 1.0, 0.1, 0.1,
    )  # fmt: skip


def test_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 3), (2, 5), (5, 3), (6, 6)):
        costs = rng.random((rows, columns))
        pairs = assign(costs)
        assert len(pairs) == min(rows, columns)
        wide = costs if rows <= columns else costs.T
        best = min(
            sum(wide[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(costs[i, j] for i, j in pairs) == pytest.approx(best)
    assert assign(np.zeros((0, 3))) == []


def run_tracker(frames: list[tuple[list[list[float]], list[float], list[int]]]) -> list[Any]:
    tracker = Tracker(25.0, np.array([0.5, 0.5]))
    reported = []
    for boxes, scores, labels in frames:
        one = found(boxes, scores, labels)
        rows, ids = tracker.update(one.boxes_xyxy_px, one.scores, one.labels)
        reported.append(dict(zip(rows.tolist(), ids.tolist(), strict=True)))
    return reported


def test_two_objects_that_cross_keep_their_numbers() -> None:
    frames = []
    for t in range(40):
        left, right = 5.0 * t, 195.0 - 5.0 * t
        boxes = [[left, 10, left + 30, 50], [right, 32, right + 30, 72]]
        scores = [0.9, 0.9 if not 15 <= t <= 20 else 0.25]  # half hidden, its score falls
        frames.append((boxes, scores, [0, 0]))
    reported = run_tracker(frames)
    assert reported == [{0: 1, 1: 2}] * 40


def test_a_lost_object_comes_back_and_noise_begins_nothing() -> None:
    def moving(t: int) -> list[float]:
        return [3.0 * t, 10, 3.0 * t + 30, 50]

    seen = [t not in range(10, 18) for t in range(30)]
    frames = [
        ([moving(t)], [0.9], [0]) if seen[t] else ([], [], []) for t in range(30)
    ]  # fmt: skip
    reported = run_tracker(frames)
    assert [bool(frame) for frame in reported] == seen
    assert {number for frame in reported for number in frame.values()} == {1}
    flicker = [([[0, 0, 9, 9]], [0.9], [0])] + [([[t * 50, 0, t * 50 + 9, 9]], [0.9], [0]) for t in
                range(2, 6)]  # fmt: skip
    assert run_tracker(flicker)[1:] == [{}] * 4, "seen once is not reported"
    weak = [([moving(t)], [0.3], [0]) for t in range(5)]
    assert run_tracker(weak) == [{}] * 5, "low scores continue tracks, and begin none"
    classes = [([moving(t)], [0.9], [t % 2]) for t in range(4)]
    assert 2 not in {number for frame in run_tracker(classes) for number in frame.values()}
    forgotten = [([moving(0)], [0.9], [0]), *[([], [], [])] * 40, ([moving(0)], [0.9], [0])]
    assert run_tracker(forgotten)[-1] == {}, "after a second it is another"


def test_tracks_are_in_the_recording(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", "mp4v", 10)
    result, problems = detect([str(clip)], track=True, save=tmp_path / "out")
    assert result["tracks"] == 1 and not problems
    lines = (tmp_path / "out" / "clip.jsonl").read_text().splitlines()
    assert [json.loads(line)["ids"] for line in lines] == [[1]] * 10
    bundle: Any = FakeBundle()
    assert "tracks" not in detect_stream(bundle, str(clip), DetectOptions())


class Spots(FakeBundle):
    """Finds white squares no smaller than 8 pixels of the network's input, which is 64x64."""

    input_hw = (64, 64)

    def held(self) -> None:
        return None

    def detect(self, image: Image, score: float | None = None) -> Found:
        scale = min(1.0, 64 / max(image.shape[:2]))
        mask = (image[:, :, 0] > 200).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        boxes = [
            [float(x), float(y), float(x + w), float(y + h)]
            for x, y, w, h, _ in stats[1:count]
            if max(w, h) * scale >= 8
        ]
        return found(boxes, [0.9] * len(boxes), [0] * len(boxes))


def test_tiles_find_what_is_small_and_each_object_once() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    squares = [[10, 10, 22, 22], [58, 40, 70, 52], [100, 60, 112, 72], [280, 185, 292, 197],
               [130, 90, 250, 180]]  # fmt: skip
    for x0, y0, x1, y1 in squares:
        image[y0:y1, x0:x1] = 255
    bundle = Spots()
    assert len(bundle.detect(image).scores) == 1, "the large one only"
    boxes = detect_tiled(bundle, image, 0.6).boxes_xyxy_px.tolist()
    assert sorted(boxes) == sorted([float(v) for v in square] for square in squares)
    small = image[:60, :60]
    assert len(detect_tiled(bundle, small, 0.6).scores) == len(bundle.detect(small).scores)
    for side in (64, 65, 100, 128, 1000):
        starts = tile_starts(side, 64)
        assert starts[0] == 0 and starts[-1] == side - 64
        assert all(b - a <= 48 for a, b in itertools.pairwise(starts))


def test_one_object_at_one_place() -> None:
    one = found([[0, 0, 10, 10], [0, 0, 10, 11], [50, 0, 60, 10]], [0.5, 0.9, 0.4], [0, 1, 0])
    assert suppressed(one.boxes_xyxy_px, one.scores, 0.6).tolist() == [1, 2]
    assert suppressed(one.boxes_xyxy_px, one.scores, 0.6, one.labels).tolist() == [1, 0, 2]

    class Double(FakeBundle):
        names = ("a", "b")

        def held(self) -> None:
            return None

        def detect(self, image: Image, score: float | None = None) -> Found:
            return one

    double: Any = Double()
    image = np.zeros((40, 60, 3), np.uint8)
    assert DetectOptions().finder(double)(image).labels.tolist() == [1, 0]
    assert len(DetectOptions(all_boxes=True).finder(double)(image).labels) == 3
    # A box that is not shown suppresses none that is.
    limits = np.array([0.45, 0.95], np.float32)
    assert one.once(limits).above(limits).scores.tolist() == [0.5]
    # 100 pixels each; 56 and 60 of them are shared: IoU 56 / 144 and 60 / 140.
    for shift, count in ((4.4, 2), (4.0, 1)):
        two = found([[0, 0, 10, 10], [shift, 0, 10 + shift, 10]], [0.9, 0.8], [0, 0])
        assert len(two.once().scores) == count, shift
    nested = found([[0, 0, 10, 10], [1, 1, 9, 8], [3, 3, 6, 6]], [0.5, 0.6, 0.7], [0, 0, 0])
    assert nested.once().scores.tolist() == [pytest.approx(0.7), pytest.approx(0.6)]


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_labels_are_read_as_what_was_found(tmp_path: Path, kind: str) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        cv2.imwrite(str(photos / name), np.zeros((40, 60, 3), np.uint8))
    out = tmp_path / "out"
    sources = [str(photos / "a.png"), str(photos / "more")]
    _, problems = detect(sources, save=out, labels=kind)
    assert not problems
    expected = [4.0, 4.0, 20.0, 20.0]
    if kind == "coco":
        content = json.loads((out / "labels.json").read_text())
        assert [image["file_name"] for image in content["images"]] == ["a.png", "more/b.png"]
        assert [note["bbox"] for note in content["annotations"]] == [[4.0, 4.0, 16.0, 16.0]] * 2
        assert content["categories"] == [{"id": 1, "name": "thing"}]
        data = tmp_path / "data"
        (data / "annotations").mkdir(parents=True)
        photos.rename(data / "train")
        (out / "labels.json").rename(data / "annotations" / "instances_train.json")
        loaded = load_split(data, "train")
        assert loaded.names == ("thing",)
        assert [record.boxes_xyxy.tolist() for record in loaded.records] == [[expected]] * 2
        return
    assert (out / "labels" / "classes.txt").read_text() == "thing\n"
    numbers = [float(word) for word in (out / "labels" / "a.txt").read_text().split()]
    assert numbers == pytest.approx([0, 12 / 60, 12 / 40, 16 / 60, 16 / 40], abs=1e-6)
    (out / "labels" / "more" / "b.txt").write_text("corrected by hand")
    with pytest.raises(DataError, match="is there already"):
        detect(sources, save=out, labels=kind)
    assert (out / "labels" / "more" / "b.txt").read_text() == "corrected by hand"
    with pytest.raises(DataError, match="two images have their labels in"):
        Labels("yolo", out, ["thing"], [photos / "x.png", photos / "x.jpg"])
    with pytest.raises(UserError, match="--save FOLDER"):
        DetectOptions(labels=kind)


def test_numbers_of_objects_stay_with_their_boxes() -> None:
    one = found([[0, 0, 9, 9], [5, 5, 9, 9]], [0.9, 0.2], [0, 0])
    numbered = replace(one, ids=np.array([7, 8]))
    kept = numbered.above(0.5)
    assert kept.ids is not None and kept.ids.tolist() == [7]
    assert kept.record(["thing"])["ids"] == [7] and "ids" not in one.record(["thing"])


def test_a_bundle_that_was_timed_otherwise_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))

    class Timed(FakeBundle):
        card = {  # noqa: RUF012
            "runtime": "onnxruntime", "runtime_version": runtime_version("onnxruntime"),
            "threads": 1, "measured_fps": 102.5, "device_model": cpu_model(),
        }  # fmt: skip

    detect([str(path)], bundle=Timed())
    assert "were not measured so" not in capsys.readouterr().err
    changed = {"runtime_version": "0.9", "threads": 512, "device_model": "Intel Core i7-8700"}
    Timed.card |= changed
    detect([str(path)], bundle=Timed())
    said = capsys.readouterr().err
    assert f"here is {cpu_model()} for Intel Core i7-8700, " in said
    assert "for 0.9, " in said and "for 512 threads: the card's 102.5 FPS were not" in said
