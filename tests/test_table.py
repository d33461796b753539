import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latency_tables.context import build, randomise, terms
from latency_tables.devices import Detected, Device, Target, detect_cpu, load_devices, resolve
from latency_tables.measure import Job, summarise, time_jobs
from latency_tables.profile import (
    calibrate,
    conditions_of,
    fill,
    measure_networks,
    open_table,
    random_architecture,
)
from latency_tables.table import SEAL, Calibration, Conditions, LatencyTable, Row
from supernet.architecture import Architecture, Entry
from supernet.detector import Detector
from supernet.errors import DeviceError, TableError
from supernet.operators import OPERATORS

CONDITIONS = Conditions(
    device="box",
    model="Some CPU",
    runtime="onnxruntime",
    runtime_version="1.0",
    precision="f32",
    threads=1,
    height=128,
    width=192,
)


def table_of(architecture: Architecture, ms: float = 0.5) -> LatencyTable:
    row = Row(ms, ms, 0.01, 12, "2026-01-01")
    rows = dict.fromkeys(architecture.entries().values(), row)
    return LatencyTable(CONDITIONS, rows, Calibration(1.1, ((1.0, 1.1),), ((2.2, 2.0),)))


def test_prediction_is_the_calibrated_sum(unit: Architecture) -> None:
    table = table_of(unit)
    places = len(unit.entries())
    assert table.predict_ms(unit) == pytest.approx(1.1 * 0.5 * places)
    assert table.scaled(2.0).predict_ms(unit) == pytest.approx(2.2 * 0.5 * places)
    assert table.calibration.held_out_error == pytest.approx(0.1)


def test_round_trip(unit: Architecture, tmp_path: Path) -> None:
    table = table_of(unit)
    again = LatencyTable.load(table.save(tmp_path))
    assert again == table


def test_every_row_carries_its_conditions(unit: Architecture, tmp_path: Path) -> None:
    lines = table_of(unit).save(tmp_path).read_text().splitlines()
    header = lines[0].split(",")
    for column in ("device", "model", "runtime", "runtime_version", "precision", "threads",
                   "height", "width", "date", "source", "spread", "n"):  # fmt: skip
        assert column in header
    assert all(line.count(",") == lines[0].count(",") for line in lines[1:-1])


def test_a_miss_names_the_entry_and_the_nearest(unit: Architecture) -> None:
    table = table_of(unit)
    with pytest.raises(TableError, match=r"no row for .*stem 3->96 .*nearest: stem 3->32"):
        table.predict_ms(unit.with_(widths=(96, 32, 64, 64)))


@pytest.mark.parametrize("edit", ["cut", "edited", "empty", "noseal"])
def test_damaged_tables_are_refused(unit: Architecture, tmp_path: Path, edit: str) -> None:
    path = table_of(unit).save(tmp_path)
    text = path.read_text()
    path.write_text(
        {
            "cut": text[: len(text) // 2],
            "edited": text.replace(",0.5,", ",0.1,", 1),
            "empty": "",
            "noseal": text.partition(SEAL)[0],
        }[edit]
    )
    with pytest.raises(TableError, match="cut short or edited"):
        LatencyTable.load(path)


def test_impossible_values_are_refused(unit: Architecture, tmp_path: Path) -> None:
    for ms in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TableError):
            LatencyTable.load(table_of(unit, ms).save(tmp_path))


def test_broken_sidecar_is_refused(unit: Architecture, tmp_path: Path) -> None:
    path = table_of(unit).save(tmp_path)
    sidecar = path.with_suffix(".json")
    sidecar.write_text("{")
    with pytest.raises(TableError, match="cannot be read"):
        LatencyTable.load(path)
    sidecar.write_text(json.dumps({"format": 99}))
    with pytest.raises(TableError, match="format 99"):
        LatencyTable.load(path)
    sidecar.unlink()
    with pytest.raises(TableError, match="no table at"):
        LatencyTable.load(path)


def test_other_conditions_are_refused(unit: Architecture) -> None:
    table = table_of(unit)
    for change in ({"runtime_version": "2.0"}, {"model": "Other"}, {"precision": "bf16"}):
        with pytest.raises(TableError, match="other conditions"):
            table.require(replace(CONDITIONS, **change))


def test_a_table_of_another_runtime_version_is_refused(tmp_path: Path, unit: Architecture) -> None:
    target = resolve("cpu", threads=1)
    conditions = replace(conditions_of(target, (128, 192)), runtime_version="0.0.1")
    replace_conditions = replace(table_of(unit), conditions=conditions)
    replace_conditions.save(tmp_path)
    with pytest.raises(TableError, match=r"runtime_version .* against 0\.0\.1"):
        open_table(tmp_path, target, (128, 192))


@pytest.mark.parametrize("op", OPERATORS)
def test_every_probe_is_a_model(op: str) -> None:
    """Each operator's probes build, and those of one entry share their caps."""
    template = Architecture(
        widths=(32, 32, 64, 64), blocks=("R", "W", "S", "R"), input_size=(64, 96), num_classes=2
    )
    oa = template.with_(global_block="oa").entries().values()
    entry = next(e for e in [*template.entries().values(), *oa] if e.op == op)
    assert sum(terms(entry).values()) == pytest.approx(
        {"stem": 1.0, "head": 0.0}.get(op, 0.0), abs=1e-9
    )
    for probe in terms(entry):
        model, feeds = build(probe)
        assert len(model) > 100 and feeds


def test_interleaving_is_round_robin() -> None:
    order: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, inputs: object) -> list[object]:
            order.append(self.name)
            return []

    jobs = {name: Job(Recorder(name), {}) for name in "ab"}
    timings = time_jobs(jobs, rounds=3, warmups=1)
    assert "".join(order) == "ab" + "aaabbb" * 3
    assert timings["a"].n == 6 and timings["a"].min_ms <= timings["a"].median_ms


def test_summary_by_hand() -> None:
    timing = summarise([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (timing.min_ms, timing.median_ms, timing.n) == (1.0, 3.0, 5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_table_predicts_real_networks(tmp_path: Path, runtime: str) -> None:
    """Not a timing test: only the order of magnitude is asserted, on this noisy machine."""
    template = Architecture(
        widths=(32,) * 4, blocks=("",) * 4, input_size=(64, 96), num_classes=2,
        t1_blocks=1, t2_blocks=1,
    )  # fmt: skip
    target = resolve("cpu", runtime=runtime, threads=1)
    table = open_table(tmp_path, target, (64, 96))
    calibrate(table, template, (64, 64, 64, 64), (1, 1, 2, 1), save=lambda: table.save(tmp_path))
    assert table.calibration.held_out_error is not None
    again = open_table(tmp_path, target, (64, 96))
    assert again.rows == table.rows and again.facts["seconds"] > 0
    network = random_architecture(
        np.random.default_rng(5), template, (64, 64, 64, 64), (1, 1, 2, 1)
    )
    fill(again, network.entries().values())
    measured = measure_networks([network], again.conditions)[0].median_ms
    assert 0.3 < again.predict_ms(network) / measured < 3.0


def test_randomised_networks_are_busy(unit: Architecture) -> None:
    import torch

    network = Detector(unit).eval()
    randomise(network)
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        scores = network(image)[0].sigmoid()
    assert 0.05 < float((scores > 0.05).float().mean()) < 0.3


def test_device_files() -> None:
    devices = load_devices()
    assert {"cpu", "cpu-i7", "cpu-i7-dual", "v100", "gtx-1080ti"} <= set(devices)


def test_unknown_and_absent_devices_say_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'toaster': one of .*cpu-i7.*"):
        resolve("toaster")
    with pytest.raises(DeviceError, match=r"v100 needs an NVIDIA Tesla V100.*--device cpu"):
        resolve("v100")
    with pytest.raises(DeviceError, match="--threads 0"):
        resolve("cpu", threads=0)
    with pytest.raises(DeviceError, match="--threads 4096"):
        resolve("cpu", threads=4096)


def fake_target(model: str, pattern: str, warnings: tuple[str, ...]) -> Target:
    device = Device(
        name="cpu-i7", title="t", kind="cpu", pattern=pattern, runtime="onnxruntime",
        precision="f32", threads=6,
    )  # fmt: skip
    facts = Detected(model, 2, None, "unknown", (), 1000)
    return Target(device, facts, 2, "onnxruntime", warnings)


def test_a_machine_is_named_as_what_it_is() -> None:
    i7 = "Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz"
    assert fake_target(i7, "core.*i7", ()).name == "cpu-i7"
    assert fake_target(i7, "", ()).name == "intel-core-i7-8700k"
    other = fake_target("AMD EPYC 9555 64-Core Processor", "core.*i7", ("it is not",))
    assert other.name == "amd-epyc-9555-64-core"
    target = resolve("cpu-i7")
    assert target.threads <= target.detected.cores
    if "i7" not in detect_cpu().model:
        assert target.name != "cpu-i7" and "named as" in target.warnings[0]


def test_broken_device_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text("title = 3\nkindd = 'cpu'\n")
    monkeypatch.setattr("latency_tables.devices.FOLDER", tmp_path)
    with pytest.raises(DeviceError, match=r"bad\.toml is no device file"):
        load_devices()


def test_entry_names_are_short() -> None:
    assert str(Entry("fuse", 16, 128, 224, 52, 84)) == "fuse 128->224 @16 52x84"
