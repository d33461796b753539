"""What only a GPU can show. Run by `pytest -m gpu`; skipped where torch finds none.

With HEAT_REHEARSE=1 the same tests run on the CPU, with a stand-in for CUDA graphs: what is wrong
in the tests themselves is found before a GPU is there.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.edge.runtimes import open_session
from deploy.edge.session import installed_runtimes
from heat.workspace import Workspace
from latency_tables.cuda_graph import CpuGraph
from latency_tables.devices import resolve
from latency_tables.meter import DeviceMeter
from latency_tables.models import random_network, write_network
from latency_tables.plan import space_entries
from latency_tables.probe.batch import feeds_of
from latency_tables.probe.setting import Setting
from latency_tables.store import conditions_of
from latency_tables.torch_session import TorchSession
from supernet.data.coco import load_split
from supernet.data.shapes import make_shapes
from supernet.graph.style import GraphStyle
from supernet.network import AnyArchitecture, build, find_architecture
from supernet.train.loop import fit
from supernet.train.recipes import TrainConfig, recipe
from supernet.train.running import Running
from tests.conftest import UNIT

REHEARSED = os.environ.get("HEAT_REHEARSE") == "1"
DEVICE, RECORD = ("cpu", CpuGraph) if REHEARSED else ("cuda", None)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not REHEARSED and not torch.cuda.is_available(), reason="torch finds no GPU"
    ),
]

IMAGE = {"image": ((1, *UNIT.input_size, 3), "uint8")}


@pytest.mark.parametrize("block", ["cw", "oa"])
def test_a_cuda_graph_computes_what_the_cpu_computes(block: str) -> None:
    network = random_network(UNIT.with_(global_block=block))
    feeds = feeds_of(IMAGE)
    setting = Setting(runtime="torch", precision="f32", threads=1)
    there = replace(setting, device=DEVICE)
    with (
        TorchSession(network.deployed(), setting) as cpu,
        TorchSession(network.deployed(), there, RECORD) as gpu,
    ):
        exact = cpu.run(feeds)
        for _ in range(2):
            found = gpu.run(feeds)
            assert found[0].shape == exact[0].shape
            np.testing.assert_allclose(found[1], exact[1], atol=1e-4)
            np.testing.assert_allclose(found[0], exact[0], atol=0.05)
        other = {"image": 255 - feeds["image"]}
        np.testing.assert_allclose(gpu.run(other)[1], cpu.run(other)[1], atol=1e-4)
        assert gpu.timed(feeds) > 0


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_half_precision_is_executed(precision: str) -> None:
    network = random_network(UNIT)
    setting = Setting(runtime="torch", precision=precision, threads=1, device=DEVICE)
    with TorchSession(network.deployed(), setting, RECORD) as session:
        assert set(session.executed(feeds_of(IMAGE))) == {precision}
        assert all(np.isfinite(output).all() for output in session.run(feeds_of(IMAGE)))


def test_every_kind_of_entry_is_timed() -> None:
    """One entry of each operator, by CUDA graphs in half precision."""
    target = resolve(DEVICE, runtime="torch", threads=1, precision="f32" if REHEARSED else "f16")
    assert REHEARSED or (target.gpu is not None and target.setting.device == "cuda")
    meter = DeviceMeter(conditions_of(target, UNIT.input_size))
    every = space_entries(UNIT, UNIT.widths, oa=True)
    chosen = list({entry.op: entry for entry in every}.values())
    samples = meter.entries(chosen).samples
    assert {sample.entry for sample in samples} == set(chosen)
    assert sum(sample.ms for sample in samples) > 0
    assert meter.network(UNIT).networks[0].ms > 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_exported_graphs_run_on_the_gpu(runtime: str, precision: str, tmp_path: Path) -> None:
    installed = installed_runtimes()
    names = ("tensorrt", "tensorrt_rtx") if runtime == "tensorrt" else (runtime,)
    if not any(installed[name] for name in names):
        pytest.skip(f"{runtime} is not installed")
    if REHEARSED and runtime == "tensorrt":
        pytest.skip("TensorRT needs a GPU")
    if runtime == "onnxruntime" and not REHEARSED:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has no CUDA provider")
    network = random_network(UNIT)
    path = tmp_path / "model.onnx"
    style = GraphStyle.of(runtime, precision)
    path.write_bytes(network.to_onnx(raw=True, style=style).SerializeToString())
    feeds = feeds_of(IMAGE)
    exact = network.deployed()(torch.from_numpy(feeds["image"]))[0].sigmoid().detach().numpy()
    with open_session(runtime, path, 1, precision, DEVICE) as session:
        scores = session.run(feeds)[0].reshape(exact.shape)
        bound = 1e-4 if precision == "f32" else 3e-2
        np.testing.assert_allclose(scores.astype(np.float32), exact, atol=bound)
        assert session.timed(feeds) > 0


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("unit", None), ("detr-s", "exact"), ("detr-s", "enact"), ("detr-s", "act"),
        ("sam-detr-s", "exact"),
    ],
)  # fmt: skip
def test_a_training_ends_with_finite_losses(
    name: str, attention: str | None, tmp_path: Path
) -> None:
    """Every kind of network, for one epoch of four images, in the autocast of this GPU."""
    make_shapes(tmp_path / "shapes", train=4, val=2)
    data = load_split(tmp_path / "shapes", "train")
    architecture: AnyArchitecture = UNIT if name == "unit" else find_architecture(name)
    if attention is not None:
        architecture = architecture.with_(attention=attention)
    architecture = architecture.with_(num_classes=data.num_classes, input_size=(128, 192))
    network = build(architecture)
    config: TrainConfig = recipe("small", epochs=1, batch_size=2)
    done = fit(network, data, config, tmp_path / "run", Running(workers=0))
    assert done.epochs == 1 and done.skipped_steps == 0
    assert all(bool(p.isfinite().all()) for p in network.parameters())


def test_a_supernet_trains_and_its_weights_load_on_the_cpu(tmp_path: Path) -> None:
    from heat.spaces import search_space
    from supernet.checkpoint import load_weights
    from supernet.heatdetr.supernet import Supernet

    make_shapes(tmp_path / "shapes", train=4, val=2)
    data = load_split(tmp_path / "shapes", "train")
    space = search_space("micro", input_size=(64, 96), num_classes=data.num_classes)
    network = Supernet(space)
    done = fit(network, data, recipe("small", epochs=1, batch_size=2), tmp_path / "run",
               Running(workers=0))  # fmt: skip
    again = Supernet(space)
    load_weights(done.checkpoint, again)
    assert all(parameter.device.type == "cpu" for parameter in again.parameters())


def test_the_card_has_its_own_name_and_conditions(tmp_path: Path) -> None:
    if REHEARSED:
        pytest.skip("no card")
    target = resolve("cuda", runtime="torch", threads=1)
    conditions = conditions_of(target, (64, 96))
    assert conditions.driver and conditions.model == torch.cuda.get_device_name()
    record = Workspace(tmp_path).record("profile", {"model": conditions.model})
    assert json.loads(json.dumps(record))["model"] == conditions.model
    assert write_network(UNIT, target.setting).opener is not None
