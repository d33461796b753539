import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import latency_tables.meter
import latency_tables.plan
from latency_tables.costs import entry_bytes, size_mb, working_set_mb
from latency_tables.devices import resolve
from latency_tables.meter import FRESH_COMMAND, DeviceMeter
from latency_tables.models import ProbeNet, random_network, write, write_network
from latency_tables.networks import random_architecture, reference_architecture
from latency_tables.plan import TARGETS, Checks, check_networks, space_entries
from latency_tables.probe.batch import feeds_of, precision_of
from latency_tables.probe.fresh import peak_mb
from latency_tables.probe.machine import (
    Watch,
)
from latency_tables.probe.measure import Job, at_one_speed, outer_rank, summarise, time_jobs
from latency_tables.probe.setting import Model, Setting
from latency_tables.profile import calibrate, fill
from latency_tables.stacks import Setup, measure_stacks
from latency_tables.store import conditions_of, open_table
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import write_table
from latency_tables.terms import ENDS, ProbeModel, terms
from supernet.boxes import KEEP
from supernet.counting import count_macs
from supernet.errors import DeviceError, TableError
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import CONDENSED, HEADS, Architecture
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.decode import NMS_IOU, PRE_NMS, SCORE_THRESHOLD
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.operators.suppress import nms

TINY = Architecture(
    widths=(32,) * 4, blocks=("",) * 4, input_size=(64, 96), num_classes=2,
    t1_blocks=1, t2_blocks=1,
)  # fmt: skip
LIMITS, POSITIONS = (64, 64, 64, 64), (1, 1, 2, 1)
FEW = Checks(networks=3, memory=0, budget_s=2.0)
ORT = Setting(runtime="onnxruntime", precision="f32", threads=1)


def test_a_table_of_another_runtime_version_is_refused(tmp_path: Path, unit: Architecture) -> None:
    target = resolve("cpu", threads=1)
    conditions = replace(conditions_of(target, (128, 192)), runtime_version="0.0.1")
    row = Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1.0")
    path = write_table(
        LatencyTable(conditions, dict.fromkeys(unit.entries().values(), row)), tmp_path
    )
    before = path.read_text()
    with pytest.raises(TableError, match=r"runtime_version .* against 0\.0\.1.*--trust-table"):
        open_table(tmp_path, target, (128, 192))
    trusted = open_table(tmp_path, target, (128, 192), trust=True)
    assert trusted.rows and trusted.conditions == conditions_of(target, (128, 192))
    trusted.rows.clear()  # as measuring under the conditions of now would change it
    write_table(trusted, tmp_path)
    assert path.read_text() == before and len(list(tmp_path.glob("*.csv"))) == 1


def entry_of(template: Architecture, op: str) -> Entry:
    """Return a place of an operator, in the template or one of its variants."""
    variants: list[dict[str, Any]] = [{}, {"head": "voted"}, {"head": "one-to-one"}]
    variants.append({"boxes": "distributions"})
    variants += [{"global_block": block} for block in ("oa", *CONDENSED)]
    variants.append({"output_stride": 8})
    entries = [e for more in variants for e in template.with_(**more).entries().values()]
    return next(entry for entry in entries if entry.op == op)


@pytest.mark.parametrize("op", OPERATORS)
def test_every_probe_is_a_model(op: str) -> None:
    """Each operator's probes build, and those of one entry share their caps."""
    template = Architecture(
        widths=(32, 32, 64, 64), blocks=("R", "W", "S", "R"), input_size=(64, 96), num_classes=2
    )
    entry = entry_of(template, op)
    assert sum(terms(entry).values()) == pytest.approx(
        {"stem": 1.0, "head": 0.0}.get(op, 0.0), abs=1e-9
    )
    for probe in terms(entry):
        model = write(probe)
        assert len(model.onnx) > 100 and model.inputs


def test_probes_are_written_once_where_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def counted(probe: ProbeModel, setting: Setting) -> Model:
        written.append(probe.key)
        return write(probe, setting)

    monkeypatch.setattr(latency_tables.meter, "write", counted)
    conditions = conditions_of(resolve("cpu", threads=1), (64, 96))
    entry = entry_of(TINY, "stem")
    for room, again in ((latency_tables.meter.KEPT_BYTES, []), (0, [p.key for p in terms(entry)])):
        monkeypatch.setattr(latency_tables.meter, "KEPT_BYTES", room)
        meter = DeviceMeter(conditions, check=False)
        meter.entries([entry])
        written.clear()
        assert meter.entries([entry]).samples[0].entry == entry
        assert written == again


def test_interleaving_is_round_robin() -> None:
    order: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, inputs: object) -> list[object]:
            order.append(self.name)
            return []

        def timed(self, inputs: object) -> float:
            order.append(self.name)
            return 1.0

    jobs = {name: Job(Recorder(name), {}) for name in "ab"}
    timings = time_jobs(jobs, rounds=3, warmups=1)
    assert "".join(order) == "ab" + "aaabbb" * 3
    assert timings["a"].n == 6 and timings["a"].min_ms <= timings["a"].ms


def test_summary_by_hand() -> None:
    timing = summarise([4.0, 1.0, 2.0, 3.0, 10.0], 1.0)
    assert (timing.min_ms, timing.ms, timing.n) == (1.0, 3.0, 5)


def test_what_all_jobs_have_in_common_is_taken_out() -> None:
    """In the second round everything is slower by half, in the third one job alone is."""
    visits = {
        "a": {0: [1.0, 1.0], 1: [1.5, 1.5], 2: [1.0, 1.0]},
        "b": {0: [2.0, 2.0], 1: [3.0, 3.0], 2: [2.0, 2.0]},
        "c": {0: [4.0, 4.0], 1: [6.0, 6.0], 2: [8.0, 8.0]},
    }
    found = at_one_speed(visits)
    assert [found[key].ms for key in "abc"] == pytest.approx([1.0, 2.0, 4.0])
    assert [found[key].spread for key in "ab"] == pytest.approx([0.0, 0.0])
    assert found["c"].spread > 0.5 and found["c"].min_ms == 4.0


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("onnxruntime", "f32"),
        pytest.param("openvino", "f32", marks=pytest.mark.slow),  # quick: as int8
        ("openvino", "int8"),
        ("torch", "f32"),
    ],
)
def test_a_real_table_predicts_real_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, precision: str
) -> None:
    """Not a timing test: only the order of magnitude is asserted, on this noisy machine."""
    monkeypatch.setattr(latency_tables.plan, "FIRST_OF_A_FAMILY", 2)
    target = resolve("cpu", runtime=runtime, threads=1, precision=precision)
    table = open_table(tmp_path, target, (64, 96))
    meter = DeviceMeter(table.conditions)
    entries = space_entries(TINY, LIMITS, oa=False)
    aims = check_networks(TINY, LIMITS, POSITIONS, TARGETS, seed=7)
    save = partial(write_table, table, tmp_path)
    fill(table, entries, meter, lambda _: aims, checks=FEW, save=save)
    assert set(entries) <= set(table.rows) and 0 < table.sampled < len(table.rows)
    assert {row.source for row in table.rows.values()} == {"measured", "modelled"}
    networks = check_networks(TINY, LIMITS, POSITIONS, FEW.networks)
    calibrate(table, networks, meter, checks=FEW, save=save)
    assert table.calibration.held_out_error is not None
    assert len(table.calibration.checks) == FEW.networks
    again = open_table(tmp_path, target, (64, 96))
    assert again.rows == table.rows and again.samples == table.samples
    assert again.networks == table.networks and again.history == table.history
    assert set(again.facts["seconds"]) == {"write", "load", "time"}
    assert set(again.facts["disturbance"]) >= {"other_load", "throttled", "slowdown"}
    network = random_architecture(np.random.default_rng(5), TINY, LIMITS, POSITIONS)
    found = meter.network(network).networks[0]
    assert 0.3 < again.predict_ms(network) / found.ms < 3.0


def test_the_executed_precision_is_read_back() -> None:
    """What OpenVINO runs in bf16 when f16 is asked for is called bf16 or refused."""
    model = write_network(reference_architecture((64, 96)))
    assert precision_of(model, ORT) == "f32"
    assert precision_of(model, replace(ORT, runtime="openvino")) == "f32"
    quantised = write_network(reference_architecture((64, 96)), replace(ORT, precision="int8"))
    assert precision_of(quantised, replace(ORT, runtime="openvino", precision="int8")) == "int8"
    executed = precision_of(model, replace(ORT, runtime="openvino", precision="f16"))
    target = resolve("cpu", runtime="openvino", threads=1, precision="f16")
    if executed != "f16":
        with pytest.raises(DeviceError, match=rf"executes f16 as {executed} .*--precision"):
            DeviceMeter(conditions_of(target, (64, 96)))


def test_int8_probes_compute_nearly_the_same() -> None:
    from deploy.edge.runtimes import open_session

    entry = TINY.with_(blocks=("R", "", "", "")).entries()["s1_0"]
    probe = next(iter(terms(entry)))
    outputs = []
    for precision in ("f32", "int8"):
        model = write(probe, replace(ORT, precision=precision))
        session = open_session("onnxruntime", model.onnx, 1)
        inputs = {name: np.clip(x, -3, 3) for name, x in feeds_of(model.inputs).items()}
        outputs.append(session.run(inputs)[0])
    error = np.abs(outputs[0] - outputs[1]).mean() / np.abs(outputs[0]).mean()
    assert 0 < error < 0.15


def test_half_precision_graphs_compute_nearly_the_same(unit: Architecture) -> None:
    """ONNX Runtime has few half kernels on a CPU and casts: slow, but the graph is checked."""
    from deploy.edge.runtimes import open_session

    image = {"image": np.random.default_rng(0).integers(0, 256, (1, 128, 192, 3), dtype=np.uint8)}
    network = random_network(unit)
    scores = []
    for precision in ("f32", "f16"):
        model = network.to_onnx(raw=True, style=GraphStyle(precision=precision)).SerializeToString()
        scores.append(open_session("onnxruntime", model, 1).run(image)[0])
    assert scores[0].dtype == scores[1].dtype == np.float32
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.02
    onnx.checker.check_model(network.to_onnx(style=GraphStyle(precision="bf16")), full_check=True)
    target = resolve("cpu", threads=1, precision="f16")
    with pytest.raises(DeviceError, match="onnxruntime executes f16 as f32"):
        DeviceMeter(conditions_of(target, (64, 96)))


def test_torch_runs_what_is_deployed(unit: Architecture) -> None:
    setting = replace(ORT, runtime="torch")
    model = write_network(unit, setting)
    assert model.opener is not None
    session = model.opener(setting)
    image = feeds_of(model.inputs)
    boxes, found, _ = session.run(image)
    with torch.no_grad():
        expected = random_network(unit).deployed().detect(torch.from_numpy(image["image"]))[0]
    np.testing.assert_allclose(found, expected.scores.numpy(), atol=1e-5)
    assert boxes.shape == (len(found), 4) and session.timed(image) > 0
    assert precision_of(model, setting) == "f32"
    assert precision_of(model, replace(setting, precision="bf16")) == "bf16"


def test_engines_are_built_without_a_gpu() -> None:
    """Real TensorRT engines for another GPU, where its package is installed."""
    pytest.importorskip("tensorrt_rtx_bindings")
    from deploy.edge.engine import build_engine

    for precision in ("f32", "f16", "bf16", "int8"):
        for op in ("repcnn", "wmsa", "cw", "fuse"):
            template = TINY.with_(blocks=("RWS", "", "", ""))
            entry = next(e for e in template.entries().values() if e.op == op)
            probe = write(
                next(iter(terms(entry))), replace(ORT, runtime="tensorrt", precision=precision)
            )
            data, precisions, _ = build_engine(probe.onnx, capability="SM89")
            assert len(data) > 1000 and precision in precisions


def test_engine_precisions_are_counted() -> None:
    """The inspector's text is made up in its form: running one needs a GPU."""
    from deploy.edge.engine import layer_precisions

    layers = [
        {"LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Row major FP16"}]},
        {
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Row major Int8"}],
            "Outputs": [{"Format/Datatype": "Row major FP32"}],
        },
        {"LayerType": "gemm", "Name": "MatMul_3", "Outputs": [{"Format/Datatype": "Half"}]},
        {"LayerType": "PointWise", "Outputs": [{"Format/Datatype": "FP32"}]},
        "a name only",
    ]
    assert layer_precisions(json.dumps({"Layers": layers})) == {"f16": 2, "int8": 1}


def test_cuda_runtimes_say_what_is_missing() -> None:
    from deploy.edge.runtimes import open_session
    from supernet.errors import HeatError

    model = write(next(iter(terms(TINY.entries()["stem"])))).onnx
    for runtime, message in (
        ("onnxruntime", "no CUDA provider: pip install onnxruntime-gpu"),
        ("openvino", "unknown runtime 'openvino' on cuda: one of tensorrt, onnxruntime"),
    ):
        with pytest.raises(HeatError, match=message):
            open_session(runtime, model, 1, device="cuda")


def test_every_stack_of_figure_two_runs() -> None:
    found = measure_stacks(ORT, Setup(width=64, side=14))
    assert set(found) >= {"DeiT-LN", "DeiT-BN", "Swin-LN", "HOD", "RepCNN, branches"}
    assert all(ms > 0 for ms in found.values())


@pytest.mark.parametrize("op", OPERATORS)
def test_torch_and_onnx_probes_are_the_same_network(op: str) -> None:
    """One wiring, two forms: the ONNX model computes what the torch module does."""
    from deploy.edge.runtimes import open_session

    entry = entry_of(TINY.with_(blocks=("R", "W", "S", "R")), op)
    for probe in terms(entry):
        if probe.kind == "decoded" or op in (*ENDS, *HEADS.values()):
            continue  # the head's maps leave torch as logits, the graph as probabilities
        net = ProbeNet(probe)
        feeds = feeds_of(net.shapes())
        with torch.no_grad():
            ours = net(*(torch.from_numpy(x) for x in feeds.values()))
        theirs = open_session("onnxruntime", write(probe).onnx, 1).run(feeds)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=2e-3, atol=2e-3)


def test_size_is_the_sum_of_the_entries(unit: Architecture) -> None:
    real = len(write_network(unit).onnx) / 2**20
    assert size_mb(unit) == pytest.approx(real, rel=0.03)
    entry = unit.entries()["s1_0"]
    assert entry_bytes(entry, replace(ORT, precision="int8")) < entry_bytes(entry)
    assert working_set_mb(unit) < working_set_mb(unit.with_(input_size=(256, 384)))


def test_peak_memory_is_that_of_a_process(unit: Architecture) -> None:
    small, large = (
        peak_mb(write_network(unit.with_(widths=(w,) * 4)), ORT, FRESH_COMMAND) for w in (32, 256)
    )
    assert 20 < small < large


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load of others is read on Linux")
def test_the_watch_sees_load() -> None:
    """Another process that keeps a core busy is seen; this one's own work is not."""
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(1.0)
        found = watch.read()
        busy.kill()
    assert found.other_load > 0.3
    watch.read()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    assert watch.read().other_load < 0.5


def test_confidence_bound_of_order_statistics() -> None:
    assert [outer_rank(n) for n in (1, 12, 24)] == [0, 2, 6]
    steady, shaky = summarise([1.0] * 12, 1.0), summarise([1.0, 3.0] * 6, 1.0)
    assert steady.stable and steady.interval == steady.sd_ms == 0.0
    assert not shaky.stable and shaky.interval == 1.0
    assert shaky.sd_ms == pytest.approx(2.0 / 3.92)


def test_unstable_models_are_visited_again() -> None:
    class Noisy:
        visits = 0

        def run(self, inputs: object) -> list[object]:
            return []

        def timed(self, inputs: object) -> float:
            self.visits += 1
            return 1.0 if self.visits > 8 else float(self.visits)

    noisy = Noisy()
    found = time_jobs({"noisy": Job(noisy, {})}, rounds=3)["noisy"]
    assert found.stable and found.n > 6


def test_check_networks_span_the_sizes() -> None:
    networks = check_networks(TINY, (192, 192, 256, 384), (2, 2, 18, 2), 15)
    macs = [count_macs(network).total for network in networks]
    assert len(networks) == 15 and max(macs) > 10 * min(macs)


def test_what_is_timed_is_as_busy_as_a_trained_network() -> None:
    """NMS is given all it takes, and looks at hundreds before 100 are kept."""
    network = random_network(reference_architecture((256, 320)))
    image = torch.randint(0, 256, (1, 256, 320, 3), dtype=torch.uint8)
    with torch.no_grad():
        scores, boxes = network.decode.open(*network(image))
    given = network.decode.candidates(scores[0], boxes[0])
    assert len(given.scores) == PRE_NMS and given.scores.min() > SCORE_THRESHOLD
    kept = nms(network.decode.apart(given), NMS_IOU, KEEP)
    assert len(kept) == KEEP and 0.2 * PRE_NMS < kept[-1] < 0.8 * PRE_NMS
    assert network.decode.calibration is not None
