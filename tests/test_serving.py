"""Layouts for inference servers: read back as the server would, compared with the model.

No server runs here. Triton's file is parsed by protobuf with the messages of its ModelConfig, and
every model is loaded from its layout by the runtime.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.edge.detect import Bundle
from deploy.edge.runtimes import open_session
from deploy.edge.session import import_runtime
from deploy.export import export_bundle
from deploy.form import Form, Format
from deploy.serving import MAX_BATCH, serving_name, write_serving
from heat.stages.export import Wish
from supernet.data.shapes import draw
from supernet.errors import PromiseError, UserError
from supernet.graph.style import Precision
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, letterbox

openvino = import_runtime("openvino")
NAMES = ("cat", "dog", "owl")
STRING, INT32, INT64, ENUM, MESSAGE = 9, 5, 3, 14, 11
TYPES = [
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "STRING", "BF16",
]  # fmt: skip
FIELDS = {
    "Input": [("name", 1, STRING), ("data_type", 2, "DataType"), ("dims", 4, [INT64])],
    "Output": [("name", 1, STRING), ("data_type", 2, "DataType"), ("dims", 3, [INT64])],
    "Group": [("count", 2, INT32), ("kind", 4, "Kind")],
    "Batching": [],
    "Parameter": [("string_value", 1, STRING)],
    "Entry": [("key", 1, STRING), ("value", 2, "Parameter")],
    "Config": [
        ("name", 1, STRING), ("platform", 2, STRING), ("max_batch_size", 4, INT32),
        ("input", 5, ["Input"]), ("output", 6, ["Output"]), ("instance_group", 7, ["Group"]),
        ("dynamic_batching", 11, "Batching"), ("parameters", 14, ["Entry"]),
    ],
}  # fmt: skip
"""What of Triton's model_config.proto is written, with its field numbers."""


def parse_config(text: str) -> Any:
    """Parse a config.pbtxt with Triton's messages; what these do not know is refused."""
    pool_module = pytest.importorskip("google.protobuf.descriptor_pool")
    from google.protobuf import descriptor_pb2, message_factory, text_format

    file = descriptor_pb2.FileDescriptorProto(name="config.proto", syntax="proto3")
    kinds = ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]
    for enum, values in (("DataType", [f"TYPE_{name}" for name in TYPES]), ("Kind", kinds)):
        made = file.enum_type.add(name=enum)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)
    for message, fields in FIELDS.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            many, kind = isinstance(kind, list), kind[0] if isinstance(kind, list) else kind
            field = made.field.add(name=name, number=number, label=3 if many else 1)
            if isinstance(kind, str):
                field.type_name = f".{kind}"
                field.type = ENUM if kind in ("DataType", "Kind") else MESSAGE
            else:
                field.type = kind
    pool = pool_module.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("Config"))()
    text_format.Parse(text, config)
    return config


@pytest.fixture
def image() -> Image:
    return draw(np.random.default_rng(3)).pixels


def export(
    network: Detector, folder: Path, image: Image, format: Format, **options: Any
) -> tuple[Path, dict[str, Any]]:
    done = export_bundle(
        network, folder, Form(format=format, **options), names=NAMES, images=[image],
        facts={"trained": False, "target_fps": None, "pinning": False},
    )  # fmt: skip
    return done.folder, done.card


def onnx_tensors(values: Any) -> list[tuple[str, str, list[int]]]:
    """Return name, type and sides of a graph's inputs or outputs, -1 for open ones."""
    kinds = {
        onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.UINT8: "UINT8",
        onnx.TensorProto.INT64: "INT64",
    }  # fmt: skip
    return [
        (
            value.name,
            kinds[value.type.tensor_type.elem_type],
            [
                side.dim_value if side.HasField("dim_value") else -1
                for side in value.type.tensor_type.shape.dim
            ],
        )
        for value in values
    ]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_triton_is_given_what_the_model_declares(
    network: Detector, tmp_path: Path, image: Image, raw: bool, dynamic: bool
) -> None:
    bundle, card = export(
        network, tmp_path / "bundle", image, "onnx", raw=raw, dynamic_batch=dynamic, threads=2
    )  # fmt: skip
    layout = write_serving(bundle, card, tmp_path / "serving", "street")
    assert sorted(str(p.relative_to(layout)) for p in layout.rglob("*") if p.is_file()) == [
        "README.txt", "street/1/model.onnx", "street/config.pbtxt"
    ]  # fmt: skip
    config = parse_config((layout / "street" / "config.pbtxt").read_text())
    assert (config.name, config.platform) == ("street", "onnxruntime_onnx")
    assert config.max_batch_size == (MAX_BATCH if dynamic else 0)
    assert config.HasField("dynamic_batching") == dynamic
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]
    parameters = {entry.key: entry.value.string_value for entry in config.parameters}
    assert parameters == {"intra_op_thread_count": "2", "inter_op_thread_count": "1"}
    model = layout / "street" / "1" / "model.onnx"
    graph = onnx.load(model).graph
    for written, values in ((config.input, graph.input), (config.output, graph.output)):
        declared = onnx_tensors(values)
        batch = [-1] if dynamic else []
        found = [(t.name, TYPES[t.data_type], batch + list(t.dims)) for t in written]
        assert found == declared
    # What a client gets for what the README asks of it is what the bundle finds.
    pixels, _ = letterbox(image, (96, 128))
    with open_session("onnxruntime", model, 1) as session:
        served = session.run({config.input[0].name: pixels[None]})
    with Bundle(bundle) as loaded:
        direct = loaded._session.run({"image": pixels[None]})
    for ours, theirs in zip(served, direct, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    text = (layout / "README.txt").read_text()
    assert "image  uint8 [" in text and "normalisation is in the graph" in text
    assert "RGB 124 116 104" in text and "The server itself was not run." in text
    assert "2 owl" in text and ("Postprocess" in text) == raw


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_ovms_is_given_a_model_with_the_cards_names(
    network: Detector, tmp_path: Path, image: Image, raw: bool, dynamic: bool, precision: Precision
) -> None:
    try:
        bundle, card = export(
            network, tmp_path / "bundle", image, "openvino", raw=raw, dynamic_batch=dynamic,
            precision=precision,
        )  # fmt: skip
    except PromiseError as error:
        if precision == "f32" or "bf16" not in str(error):
            raise
        pytest.skip(str(error))  # a CPU without bf16
    layout = write_serving(bundle, card, tmp_path / "serving", "street")
    assert sorted(str(p.relative_to(layout)) for p in layout.rglob("*") if p.is_file()) == [
        "README.txt", "config.json", "street/1/model.bin", "street/1/model.xml"
    ]  # fmt: skip
    ((entry,),) = json.loads((layout / "config.json").read_text()).values()
    config = entry["config"]
    assert set(config) == {"name", "base_path", "target_device", "plugin_config"}
    assert all(isinstance(value, str | bool | int) for value in config["plugin_config"].values())
    core = openvino.Core()
    model = core.read_model(layout / config["base_path"] / "1" / "model.xml")
    assert [port.get_names() for port in model.inputs] == [{"image"}]
    assert [port.get_names() for port in model.outputs] == [{name} for name in card["outputs"]]
    compiled = core.compile_model(model, config["target_device"], config["plugin_config"])
    assert compiled.get_property("INFERENCE_NUM_THREADS") == card["threads"] == 1
    pixels, _ = letterbox(image, (96, 128))
    served = compiled.create_infer_request().infer({"image": pixels[None]})
    with Bundle(bundle) as loaded:
        direct = loaded._session.run({"image": pixels[None]})
    for name, theirs in zip(card["outputs"], direct, strict=True):
        np.testing.assert_allclose(served[name], theirs, rtol=1e-3, atol=1e-3)
    text = (layout / "README.txt").read_text()
    assert "docker run" in text and "openvino/model_server" in text
    assert "--config_path /models/config.json" in text


def test_a_layout_is_replaced_whole_and_needs_no_links(
    network: Detector, tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, card = export(network, tmp_path / "bundle", image, "onnx")
    folder = tmp_path / "serving"
    first = write_serving(bundle, card, folder, "one")
    assert (first / "one" / "1" / "model.onnx").samefile(bundle / "model.onnx")

    def refuse(*_: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_serving(bundle, card, folder, "two")
    assert [path.name for path in sorted(first.iterdir())] == ["README.txt", "two"]
    copied = first / "two" / "1" / "model.onnx"
    assert copied.read_bytes() == (bundle / "model.onnx").read_bytes()
    assert not copied.samefile(bundle / "model.onnx")
    with pytest.raises(PromiseError, match="its card describes boxes"):
        write_serving(bundle, {**card, "outputs": {"boxes": "none"}}, folder, "three")
    assert [path.name for path in folder.iterdir()] == ["triton"] and copied.exists()


def test_what_no_server_runs_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--serving: .* onnx and openvino, not tensorrt"):
        Wish(format="tensorrt", serving=True)
    assert serving_name(tmp_path / "my run, größer") == "my-run-gr-er"
    assert serving_name(Path("/")) == "detector"


def test_the_readme_says_where_the_client_reads_the_thresholds(
    network: Detector, tmp_path: Path, image: Image
) -> None:
    bundle, card = export(network, tmp_path / "bundle", image, "onnx")
    card["thresholds"] = {"cat": 0.4, "dog": None, "owl": 0.25}
    layout = write_serving(bundle, card, tmp_path / "serving", "street")
    assert "best F1 at cat 0.4, owl 0.25" in (layout / "README.txt").read_text()
    card["decode"] = {"kind": "set", "focal": True, "keep": 100}  # of DETR's family
    layout = write_serving(bundle, card, tmp_path / "serving", "street")
    assert "outputs boxes of every score" in (layout / "README.txt").read_text()
