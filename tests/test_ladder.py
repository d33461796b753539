"""A ladder of bundles holds a frame rate: a faster network takes over while it must."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deploy.edge import script
from deploy.edge.found import Found
from deploy.edge.ladder import Hold, Ladder, open_finder, read_ladder
from deploy.export import export_bundle
from deploy.form import Form
from heat.commands.outcomes import Export
from heat.workspace import Workspace
from latency_tables.models import randomise
from supernet.data.shapes import draw
from supernet.errors import BundleError, UserError
from supernet.heatdetr.detector import Detector
from tests.conftest import UNIT


def run(hold: Hold, ms: float, frames: int, start_s: float) -> float:
    """Feed frames that take so long on the first rung, and less on the others."""
    now = start_s
    for _ in range(frames):
        now += hold.budget_ms / 1000
        hold.take(ms * hold.expected_ms[hold.rung] / hold.expected_ms[0], now)
    return now


def test_a_faster_network_takes_over_after_two_late_frames_and_gives_back() -> None:
    hold = Hold(33.3, [28.0, 14.0, 7.0])
    now = run(hold, 28.0, 200, 0.0)
    assert hold.rung == 0
    assert not hold.take(50.0, now)
    assert hold.take(50.0, now)
    assert hold.rung == 1
    now = run(hold, 28.0, 40, now)
    assert hold.rung == 0, "as soon as the more accurate network has room again"


def test_a_single_late_frame_changes_nothing() -> None:
    hold = Hold(33.3, [28.0, 14.0])
    for index in range(100):
        assert not hold.take(60.0 if index % 2 else 20.0, index / 30)


def test_under_lasting_load_it_stays_down_and_tries_again_ever_more_rarely() -> None:
    hold = Hold(33.3, [20.0, 10.0])
    now, changes, before = 0.0, [], hold.rung
    for _ in range(30 * 120):
        now += 1 / 30
        # The accurate network is too slow, which the fast one's times do not show.
        hold.take(45.0 if hold.rung == 0 else 10.0, now)
        if hold.rung != before:
            changes.append(now)
        before = hold.rung
    assert hold.rung == 1 or now - changes[-1] < 1
    assert len(changes) < 16


def test_the_fastest_network_is_the_last(tmp_path: Path) -> None:
    hold = Hold(10.0, [28.0, 14.0], rung=1)
    run(hold, 100.0, 50, 0.0)
    assert hold.rung == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 2, "rungs": []}', "format 2"),
        ('{"format": 1, "rungs": []}', "names of folders"),
        ('{"format": 1, "rungs": [{"bundle": "../x", "target_fps": 3}]}', "names of folders"),
        ('{"format": 1, "rungs": [{"bundle": "x"}]}', "cannot be read"),
        ('{"format": 1, "rungs": [{"bundle": "..", "target_fps": 3}]}', "outside its folder"),
        ('{"format": 1, "rungs": [{"bundle": "a", "target_fps": NaN}]}', "positive numbers"),
        (f'{{"format": 1, "rungs": [{{"bundle": "a", "target_fps": 1{"0" * 400}}}]}}', "too large"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_ladder_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ladder.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        read_ladder(tmp_path)


def test_a_rung_is_no_link_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "x").symlink_to(tmp_path)
    text = '{"format": 1, "rungs": [{"bundle": "x", "target_fps": 3}]}'
    (tmp_path / "ladder" / "ladder.json").write_text(text)
    with pytest.raises(BundleError, match="a link to outside"):
        read_ladder(tmp_path / "ladder")


def test_a_rate_needs_a_ladder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="heat export --ladder"):
        open_finder(tmp_path, hold_fps=30)
    with pytest.raises(UserError, match="a positive number"):
        open_finder(tmp_path, hold_fps=-1)


def make_ladder(bundle: Path, root: Path) -> Path:
    """Write a ladder of two copies of a bundle, one of which says that it is twice as fast."""
    for name, ms in (("20-fps", 40.0), ("40-fps", 20.0)):
        shutil.copytree(bundle, root / name)
        card = json.loads((root / name / "card.json").read_text())
        (root / name / "card.json").write_text(json.dumps({**card, "p50_ms": ms}))
    rungs = [{"bundle": f"{fps}-fps", "target_fps": fps} for fps in (40, 20)]
    (root / "ladder.json").write_text(json.dumps({"format": 1, "rungs": rungs}))
    return root


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Detector(UNIT.with_(input_size=(96, 128))).eval()
    randomise(network)
    root = tmp_path_factory.mktemp("ladder")
    done = export_bundle(
        network, root / "bundle", Form(format="onnx"), names=["a", "b", "c"],
        images=[draw(np.random.default_rng(0)).pixels],
        facts={"trained": True, "target_fps": None},
    )  # fmt: skip
    shutil.copy2(done.folder / "detect.py", root / "detect.py")
    return make_ladder(done.folder, root)


def test_the_most_accurate_network_works_where_no_rate_is_held(ladder: Path) -> None:
    image = draw(np.random.default_rng(1)).pixels
    with Ladder(ladder) as loaded, open_finder(ladder / "20-fps") as one:
        for _ in range(3):
            found = loaded.detect(image)
        assert loaded.frames == [3, 0]
        assert loaded.held() is None
        np.testing.assert_array_equal(found.boxes_xyxy_px, one.detect(image).boxes_xyxy_px)


def test_an_exported_ladder_is_loaded_as_heat_load_does(ladder: Path, tmp_path: Path) -> None:
    """It was taken for a bundle."""
    with Export({"bundle": str(ladder)}, Workspace(tmp_path)).load() as loaded:
        assert isinstance(loaded, Ladder)
    with pytest.raises(UserError, match="no network was exported"):
        Export({"bundle": None}, Workspace(tmp_path)).load()


def test_all_networks_have_the_thresholds_of_the_most_accurate(
    ladder: Path, tmp_path: Path
) -> None:
    """In Python as in heat detect, whichever network it is that finds."""
    root = Path(shutil.copytree(ladder, tmp_path / "own"))
    for name, least in (("20-fps", 0.1), ("40-fps", 0.9)):
        card = json.loads((root / name / "card.json").read_text())
        card["thresholds"] = dict.fromkeys(card["names"], least)
        (root / name / "card.json").write_text(json.dumps(card))
    image = draw(np.random.default_rng(1)).pixels
    with Ladder(root, hold_fps=1000) as loaded:
        assert loaded.rungs[1].limits is not None and loaded.rungs[1].limits[0] > 0.5
        found = loaded.detect(image)
        assert loaded.frames == [0, 1], "the fastest works"
        kept = loaded.rungs[1].detect(image, 0.1)
    np.testing.assert_array_equal(found.boxes_xyxy_px, kept.boxes_xyxy_px)
    assert len(found.scores) > 0 and float(found.scores.min()) < 0.9


def test_the_script_of_a_ladder_holds_a_rate_without_torch(ladder: Path, tmp_path: Path) -> None:
    video = str(tmp_path / "v.avi")
    writer = cv2.VideoWriter(video, cv2.VideoWriter.fourcc(*"MJPG"), 25, (128, 96))
    for number in range(30):
        writer.write(np.full((96, 128, 3), 8 * number % 256, np.uint8))
    writer.release()
    # 4,000 FPS are out of reach: the fast network is the first, and stays.
    line = [sys.executable, "detect.py", video, "--hold-fps", "4000"]
    done = subprocess.run(line, cwd=ladder, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["frames"] == 30 and result["dropped"] == 0
    assert result["hold"] == {
        "hold_fps": 4000.0, "frames": {"20-fps": 0, "40-fps": 30}, "switched": 0, "switches": []
    }  # fmt: skip


def test_two_late_frames_of_a_real_network_bring_the_faster_one(
    ladder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(np.random.default_rng(1)).pixels
    with Ladder(ladder, hold_fps=20) as loaded:
        slow = loaded.rungs[0].detect

        def late(image: Any, score: float | None = None) -> Found:
            return replace(slow(image, score), latency_ms=80.0)

        monkeypatch.setattr(loaded.rungs[0], "detect", late)
        for _ in range(4):
            loaded.detect(image)
        assert loaded.frames == [2, 2]
        held = loaded.held()
        assert held is not None and held["switches"][0]["rung"] == "40-fps"
        assert held["frames"] == {"20-fps": 2, "40-fps": 2} and held["switched"] == 1
        loaded.detect(image)
        again = loaded.held()
        assert again is not None and sum(again["frames"].values()) == 1, "of the next source"
        assert again["switched"] == 0 and again["switches"] == []


def test_networks_of_other_classes_are_no_ladder(ladder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ladder, other)
    card = json.loads((other / "40-fps" / "card.json").read_text())
    (other / "40-fps" / "card.json").write_text(json.dumps({**card, "names": ["a", "b", "z"]}))
    with pytest.raises(BundleError, match="different classes"):
        Ladder(other)


def test_ctrl_c_of_the_script_is_one_line(
    ladder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "detect_sources", stopped)
    assert script.main(["a.jpg", "--bundle", str(ladder)]) == 130
    assert capsys.readouterr().err == "interrupted: what was finished is kept\n"
