"""What holds native resources is closed where its use ends: sessions, bundles, captures."""

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import heat
from deploy.diverge import first_divergence
from deploy.edge import capture
from deploy.edge.capture import Source
from deploy.edge.executed import executed_precision
from deploy.edge.runtimes import OnnxRuntimeSession, OpenVinoSession, open_crowd, open_session
from deploy.export import export_bundle
from deploy.form import Form, Format
from heat.stages.doctor import runtimes
from latency_tables.probe.batch import Bench, load, precision_of
from latency_tables.probe.setting import Model, Setting
from latency_tables.threads import thread_check
from supernet.data.shapes import draw
from supernet.errors import DataError, UserError
from supernet.heatdetr.detector import Detector
from tests.fake_videos import write_video

SESSIONS = (OnnxRuntimeSession, OpenVinoSession)
Counts = dict[str, int]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Count the sessions that are opened, and those that are closed, each once."""
    found = {"opened": 0, "closed": 0}
    closed: set[int] = set()
    kept: list[Any] = []  # so that no two have one identity

    for kind in SESSIONS:
        real_init, real_close = kind.__init__, kind.close

        def init(self: Any, *a: Any, real: Any = real_init, **k: Any) -> None:
            real(self, *a, **k)
            kept.append(self)
            found["opened"] += 1

        def close(self: Any, real: Any = real_close) -> None:
            real(self)
            closed.add(id(self))
            found["closed"] = len(closed)

        monkeypatch.setattr(kind, "__init__", init)
        monkeypatch.setattr(kind, "close", close)
    yield found
    kept.clear()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_closed_session_drops_its_model(network: Detector, runtime: str) -> None:
    model = network.to_onnx().SerializeToString()
    feeds = {"image": np.zeros((1, 96, 128, 3), np.uint8)}
    with open_session(runtime, model, 1) as session:
        session.run(feeds)
        held: Any = session
        inner = weakref.ref(held.session if runtime == "onnxruntime" else held.compiled)
        assert inner() is not None
    assert inner() is None
    session.close()  # a second time does nothing


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("fails", [False, True])
def test_an_export_closes_what_it_opens(
    network: Detector, tmp_path: Path, counts: Counts, format: Format, fails: bool
) -> None:
    def refuse(model: Path) -> Any:
        raise UserError("not timed")

    image = draw(np.random.default_rng(0)).pixels
    with pytest.raises(UserError, match="not timed") if fails else nullcontext():
        export_bundle(
            network, tmp_path / "bundle", Form(format=format), names=["a", "b", "c"],
            images=[image], facts={"trained": False, "target_fps": None},
            measure=refuse if fails else None,
        )  # fmt: skip
    assert counts["opened"] == counts["closed"] >= 2
    if not fails:
        before = counts["closed"]
        with heat.load(tmp_path / "bundle") as bundle:
            bundle.detect(image)
        bundle.close()
        assert counts == {"opened": before + 1, "closed": before + 1}
        with pytest.raises(UserError, match="was closed: load it again"):
            bundle.detect(image)


def test_what_opens_a_session_for_a_moment_closes_it(
    network: Detector, tmp_path: Path, counts: Counts
) -> None:
    shape = {"image": ((1, 96, 128, 3), "uint8")}
    model = Model(network.to_onnx().SerializeToString(), shape)
    setting = Setting(runtime="onnxruntime", precision="f32", threads=1)
    feeds = {"image": np.zeros((1, 96, 128, 3), np.uint8)}
    for runtime in ("onnxruntime", "openvino"):
        executed_precision(runtime, model.onnx, 1, "f32", feeds)
    first_divergence(network, draw(np.random.default_rng(0)).pixels, "onnxruntime", 1)
    precision_of(model, setting)
    thread_check(model.onnx, feeds, [1], seconds=0.01)
    list(runtimes())
    bench = Bench(setting, {"network": model})
    bench.run({"x": model}, rounds=1, max_rounds=1)
    bench.close()
    assert counts["opened"] == counts["closed"] > 8
    path = tmp_path / "model.onnx"
    path.write_bytes(model.onnx)
    with open_crowd("onnxruntime", path, 1):
        pass
    load(model, setting).session.close()
    assert counts["opened"] == counts["closed"]


def test_a_video_that_cannot_be_opened_twice_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v", 5)
    opened: list[Any] = []

    def once(name: str) -> Any:
        if opened:
            raise DataError("it is gone")
        opened.append(cv2.VideoCapture(name))
        return opened[0]

    monkeypatch.setattr(capture, "_opened", once)
    with pytest.raises(DataError, match="it is gone"):
        Source(str(path))
    assert not opened[0].isOpened()
