"""`heat report`: one page at every state of a workspace, offline, small, legible on a phone."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from heat.stages.explain import _moves, compare
from heat.stages.report import _is_current, _kept, write_report
from heat.thinning.ledger import LedgerRow
from heat.views.inline_svg import embedded
from heat.workspace import Workspace
from supernet.checkpoint import CheckpointInfo, file_digest, save_checkpoint
from supernet.data.coco import load_split
from supernet.heatdetr.architecture import preset
from tests.command_line import fails, run
from tests.workspaces import record

MOST_BYTES = 3_000_000
SMALL_SPACE = ["--space", "micro", "--input-size", "96x128"]
FAR = ["--device", "cpu-i7"]
"""By an estimate: nothing is measured."""
STEPS = {
    "profile": ["profile", "--estimate", *SMALL_SPACE, *FAR, "--data", "DATA"],
    "supernet": ["supernet", "--epochs", "1", "--data", "DATA"],
    "thin": ["thin", "--target-fps", "30", "--trust-table", "--ap-drop", "mass", *FAR],
    "train": ["train", "--epochs", "1", "--eval-every", "1", "--data", "DATA"],
    "export": ["export", "--threads", "1"],
    "eval": ["eval", "--bundle", "OUT/bundle-onnx"],
}
SECTIONS = {
    "profile": ["table"],
    "supernet": ["thinning", "table", "training"],
    "thin": ["network", "thinning", "table", "training"],
    "train": ["network", "thinning", "table", "training"],
    "export": ["detections", "network", "thinning", "table", "training", "parity"],
    "eval": [
        "detections", "network", "thinning", "table", "training", "accuracy", "mistakes", "parity",
    ],
}  # fmt: skip
"""What the page has after each step, besides the answer and the provenance."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Structure(HTMLParser):
    """Ids, links, and what a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in {"href", "xlink:href"} and (value or "").startswith("#"):
                self.targets.append((value or "")[1:])
            elif name in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                self.loaded.append(value or "")
        assert tag not in {"script", "iframe", "link", "object", "embed"}


@pytest.fixture(scope="module")
def pages(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The page after each step of a workspace."""
    out = tmp_path_factory.mktemp("report") / "run"
    found = {}
    for name, command in STEPS.items():
        words = [word.replace("DATA", str(shapes)).replace("OUT", str(out)) for word in command]
        code, _, errors = run(*words, "--out", out)
        assert code == 0, errors
        data = load_split(shapes, "val") if name in {"export", "eval"} else None
        found[name] = write_report(Workspace(out), data).read_text(encoding="utf-8")
    yield found


@pytest.mark.parametrize("step", STEPS)
def test_a_page_has_what_was_done(pages: dict[str, str], step: str) -> None:
    page = pages[step]
    structure = Structure(page)
    own = [name for name in structure.ids if re.fullmatch("[a-z]+", name)]
    assert own == ["answer", *SECTIONS[step], "provenance"]
    assert len(structure.ids) == len(set(structure.ids)), "ids of figures collide"
    assert set(structure.targets) <= set(structure.ids)
    text = html.unescape(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", "", page, flags=re.S))
    assert "None" not in text and "nan" not in text.split() and "Undefined" not in text


@pytest.mark.parametrize("step", STEPS)
def test_a_page_is_small_and_loads_nothing(pages: dict[str, str], step: str) -> None:
    page = pages[step]
    assert len(page.encode()) < MOST_BYTES
    assert all(value.startswith("data:image/") for value in Structure(page).loaded)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in page and not re.search(r"url\((?!#)|@import", page)


def test_the_answer_comes_first_and_names_the_next_command(pages: dict[str, str]) -> None:
    expected = {
        "profile": ("No network yet", "heat thin --target-fps FPS"),
        "thin": ("ESTIMATED", "heat train --data DIR"),
        "train": ("ESTIMATED", "heat export"),
        "export": ("ESTIMATED", "heat eval"),
    }
    for step, (answer, command) in expected.items():
        first = pages[step][pages[step].index('id="answer"') :].split("</header>")[0]
        assert answer in first and command in first, step
    last = pages["eval"].split("</header>")[0]
    for word in ("target", "predicted", "AP50", "MiB", "M parameters"):
        assert word in last
    assert "UNTRAINED" in pages["thin"] and "UNTRAINED" not in last


def test_the_stages_of_the_drawn_network_add_up(pages: dict[str, str]) -> None:
    total = re.search(r"each part, ([\d.]+) in all", pages["thin"])
    rows = re.findall(r"<span>([\d.]+) ms, \d+ %</span>", pages["thin"])
    assert total is not None and len(rows) == 8
    assert sum(map(float, rows)) == pytest.approx(float(total[1]), abs=0.05)


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    """A class, a file or a command may look like HTML."""
    missed = {"<i>a": {"small": [1, 2]}}
    record = {"ap": 0.5, "ap50": -1.0, "images": 2, "split": "<b>val", "missed": missed}
    record |= {"finished": "2026-01-01T00:00"}
    (tmp_path / "run.json").write_text(
        json.dumps({"format": 1, "command": ["heat", "<script>x"], "stages": {"eval": record}})
    )
    page = write_report(Workspace(tmp_path), None).read_text()
    assert "<script" not in page and "<i>a" not in page and "<b>val" not in page


@pytest.mark.parametrize(
    ("measured_fps", "met", "answer"),
    [(25.0, True, "all targets kept"), (None, True, "ESTIMATED"), (20.0, False, "not all targets")],
)
def test_a_fleet_is_answered_as_one(
    measured_fps: float | None, met: bool, answer: str, tmp_path: Path
) -> None:
    member: dict[str, object] = {
        "device": "cpu",
        "target_fps": 24.0,
        "predicted_fps": 26.0,
        "met": met,
    }
    member["measured_fps"] = measured_fps
    fleet = {"yard": member, "gate": member if met else None}
    stages = {"fleet": {"fleet": fleet, "met": met, "finished": "2026-01-01T00:00"}}
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "stages": stages}))
    page = write_report(Workspace(tmp_path), None).read_text()
    assert "A fleet of 2 networks" in page and answer in page and "No network" not in page
    assert ("failed" in page) == (not met)


def test_an_empty_workspace_is_named(tmp_path: Path) -> None:
    assert "heat build or heat profile" in fails(2, "report", "--out", tmp_path)


def test_figures_take_the_ink_of_the_page() -> None:
    svg = (
        '<?xml?><svg><metadata>http://purl.org</metadata><g id="a"><path d="" style="fill: #ffffff"'
        '/><path style="stroke: #000000"/><use href="#a"/></g></svg>'
    )
    found = embedded(svg, "k", 'a "b"')
    assert found.startswith('<svg role="img" aria-label="a &quot;b&quot;"')
    assert "purl" not in found and "#ffffff" not in found and "#000000" not in found
    assert 'id="k-a"' in found and 'href="#k-a"' in found
    assert embedded("no figure", "k", "") == ""


def test_in_a_browser_nothing_overflows_or_complains(pages: dict[str, str], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    widths = (390, 1280)
    frames = "".join(
        f'<iframe width="{width}" frameborder="0" srcdoc="{html.escape(page)}"></iframe>'
        for page in (pages["profile"], pages["eval"])
        for width in widths
    )
    outer = tmp_path / "outer.html"
    outer.write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<pre></pre><script>onload = () => "
        "document.querySelector('pre').textContent = 'OVERFLOW ' + [...document.querySelectorAll("
        "'iframe')].map(f => f.contentDocument.documentElement).map(e => e.scrollWidth - "
        "e.clientWidth)</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<pre>OVERFLOW ([-\d,]+)</pre>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert [int(px) for px in found[1].split(",")] == [0] * 2 * len(widths)
    assert "CONSOLE" not in done.stderr, done.stderr


def test_what_is_older_than_the_network_is_not_shown_as_its_own(tmp_path: Path) -> None:
    """AP of the training before, and a bundle of another target, were shown beside the new one."""
    workspace = Workspace(tmp_path / "run")
    scored = str(workspace.bundle("onnx"))
    record = {
        "data": "set",
        "split": "val",
        "ap": 0.111,
        "ap50": 0.2,
        "missed": {},
        "scored": scored,
    }
    workspace.record("eval", record)
    workspace.record("export-onnx", {"broken": None})
    assert _is_current(workspace, "eval") and _is_current(workspace, "export-onnx")
    text = json.loads((workspace.root / "run.json").read_text())
    for name in ("eval", "export-onnx"):
        text["stages"][name]["finished"] = "2026-01-01T00:00:00+00:00"
    (workspace.root / "run.json").write_text(json.dumps(text))
    workspace.record("adopt", {"adopted": "published.pth"})
    assert not _is_current(workspace, "eval") and not _is_current(workspace, "export-onnx")
    workspace.record("train", {"data": "set"})
    assert not _is_current(workspace, "eval") and not _is_current(workspace, "export-onnx")
    assert _is_current(workspace, "export-openvino"), "nothing is known of it"
    assert "0.111" not in write_report(workspace, None).read_text(encoding="utf-8")
    workspace.record("eval", record)
    assert "0.111" in write_report(workspace, None).read_text(encoding="utf-8")
    workspace.bundle("onnx").mkdir()
    (workspace.bundle("onnx") / "card.json").write_text("{}")
    page = write_report(workspace, None).read_text(encoding="utf-8")
    assert "0.111" not in page, "it is of the old bundle"
    assert "UNTRAINED" not in page


def test_a_score_of_another_network_is_not_shown(tmp_path: Path) -> None:
    """`heat eval --bundle` of any bundle is recorded in the workspace."""
    workspace = Workspace(tmp_path / "run")
    weights = workspace.train / "weights.safetensors"
    info = CheckpointInfo(
        kind="detector", description=preset("nano").to_json(), names=("a",), epoch=1, epochs=1,
        facts={"history": []},
    )  # fmt: skip
    save_checkpoint(weights, {}, info)
    record = {"data": "set", "split": "val", "ap": 0.777, "ap50": 0.9, "missed": {}, "images": 8}
    for of, shown in (
        ({"model.onnx": "another"}, False),
        ("digest of best.safetensors", False),
        (file_digest(weights), True),
    ):
        workspace.record("eval", {**record, "scored": "/elsewhere/bundle-onnx", "of": of})
        page = write_report(workspace, None).read_text(encoding="utf-8")
        assert ("0.777" in page) is shown, of
    assert "A network that was not thinned" in page and "No network" not in page


def test_architectures_differ_in_whatever_they_differ(tmp_path: Path) -> None:
    base = preset("nano")
    base.save(tmp_path / "a.json")
    for changes, name in (
        ({"output_stride": 16}, "output stride"),
        ({"head": "voted"}, "head"),
        ({"t2_blocks": 4}, "t2 blocks"),
        ({"num_classes": 7}, "classes"),
    ):
        base.with_(name="other", **changes).save(tmp_path / "b.json")  # type: ignore[arg-type]
        assert compare(tmp_path / "a.json", tmp_path / "b.json")["differing"] == [name]
    base.with_(name="other").save(tmp_path / "b.json")
    assert compare(tmp_path / "a.json", tmp_path / "b.json")["same"]


def test_a_limit_that_thinning_missed_is_no_kept_promise() -> None:
    """On another device than the first, or of a latency: the frame rate alone looks kept."""
    of = {"target_fps": 100.0, "measured_fps": 104.0}
    assert _kept({}, record(**of, met=True), []) is True
    assert _kept({}, record(**of, met=False), []) is False
    assert _kept({}, record(**of | {"measured_fps": None}, met=True), []) is None


def test_the_explanation_counts_the_first_move() -> None:
    first = LedgerRow(0, "WR", 4, 14.0, 71.4, 0.5, 0.01, chosen=True)
    second = LedgerRow(1, "RR", 2, 13.0, 76.9, 0.2, 0.01, chosen=True)
    lines = _moves([first, second], record(steps=2), 50.0)
    assert "6.00 ms saved" in lines[1] and "1.00 ms saved" in lines[2]
    assert "whole supernet is fast enough" in _moves([], record(steps=0), 50.0)[0]
    assert "study.csv" in _moves([], record(steps=1), 50.0)[0]
