"""Lays a bundle's model out for an inference server: Triton for ONNX, OVMS for OpenVINO.

The formats are those of Triton's `ModelConfig` (triton-inference-server/common:
protobuf/model_config.proto) and of OpenVINO Model Server's configuration file
(openvinotoolkit/model_server:src/schema.cpp). The model is loaded from the layout, and the
tensors that it declares are written; no server is started.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from supernet.errors import PromiseError, UserError

from .edge.card import Card
from .edge.runtimes import OnnxRuntimeSession, open_session, openvino_core, openvino_properties
from .feeds import DTYPES, Side, sides_of
from .serving_text import readme
from .whole_folder import replacing_folder

LAYOUTS = {"onnx": "triton", "openvino": "ovms"}
"""Which server runs a bundle of a format."""
MAX_BATCH = 8
"""Largest batch that Triton makes, where the graph takes any number of images."""
TRITON_TYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip
"""Triton's data types, without TYPE_, by numpy's."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as a model declares it."""

    name: str
    dtype: str
    sides: tuple[Side, ...]
    """Shape; None for a dynamic dimension."""

    @property
    def words(self) -> str:
        """Name, type and shape."""
        sides = ", ".join("?" if side is None else str(side) for side in self.sides)
        return f"{self.name}  {self.dtype} [{sides}]"


def layout_of(format: str) -> str:
    """Return the server that runs a format; raise `UserError` where there is none."""
    if format not in LAYOUTS:
        raise UserError(
            f"--serving: files are written for --format {' and '.join(LAYOUTS)}, not {format}"
        )
    return LAYOUTS[format]


def write_serving(bundle: Path, card: Card, folder: Path, name: str) -> Path:
    """Write `folder`/triton or `folder`/ovms for a bundle and return it.

    It appears whole and replaces what an earlier export wrote there. Raises `PromiseError` where
    the model declares other tensors than the card.
    """
    layout = layout_of(card["model_format"])
    target = folder / layout
    try:
        with replacing_folder(target) as scratch:
            version = scratch / name / "1"
            version.mkdir(parents=True)
            model = Path(card["model"])
            for file in {model, model.with_suffix(".bin")}:
                if (bundle / file).exists():
                    _link(bundle / file, version / file)
            inputs, outputs = _declared_by(version / model, card)
            if layout == "triton":
                (scratch / name / "config.pbtxt").write_text(
                    triton_config(name, inputs, outputs, card), encoding="utf-8"
                )
            else:
                (scratch / "config.json").write_text(ovms_config(name, card), encoding="utf-8")
            tensors = [tensor.words for tensor in inputs], [tensor.words for tensor in outputs]
            text = readme(layout, name, card, *tensors)
            (scratch / "README.txt").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    return target


def serving_name(run: Path) -> str:
    """Return the name of a run's model on a server; characters that are not allowed become `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", run.resolve().name).strip("-.") or "detector"


def triton_config(name: str, inputs: list[Tensor], outputs: list[Tensor], card: Card) -> str:
    """Return Triton's config.pbtxt.

    Shapes are written without the batch where the graph takes any number of images, and with it
    where it takes one: its outputs then have no batch, so that Triton must not add any.
    """
    batched = bool(card["dynamic_batch"])
    lines = [
        f'name: "{name}"',
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
        *(_triton_tensor("input", tensor, batched) for tensor in inputs),
        *(_triton_tensor("output", tensor, batched) for tensor in outputs),
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *(["dynamic_batching { }"] if batched else []),
        *(
            f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
            for key, value in (
                ("intra_op_thread_count", card["threads"]),
                ("inter_op_thread_count", 1),
            )
        ),
    ]
    return "\n".join(lines) + "\n"


def _triton_tensor(kind: str, tensor: Tensor, batched: bool) -> str:
    sides = tensor.sides[1:] if batched else tensor.sides
    dims = ", ".join("-1" if side is None else str(side) for side in sides)
    kind_of = TRITON_TYPES[tensor.dtype]
    return f'{kind} [ {{ name: "{tensor.name}" data_type: TYPE_{kind_of} dims: [ {dims} ] }} ]'


def ovms_config(name: str, card: Card) -> str:
    """Return OpenVINO Model Server's config.json; the model's path is relative to it."""
    properties = openvino_properties(
        int(card["threads"]), card["precision"], pinning=bool(card.get("pinning"))
    )
    model = {
        "name": name, "base_path": name, "target_device": "CPU", "plugin_config": properties
    }  # fmt: skip
    return json.dumps({"model_config_list": [{"config": model}]}, indent=1) + "\n"


def _link(file: Path, to: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def _declared_by(model: Path, card: Card) -> tuple[list[Tensor], list[Tensor]]:
    """Load a model from the layout and return its inputs and outputs."""
    with open_session(card["runtime"], model, 1, card["precision"]) as session:
        if isinstance(session, OnnxRuntimeSession):
            inputs, outputs = (
                [Tensor(t.name, _numpy_name(t.type), _closed(t.shape)) for t in found]
                for found in (session.session.get_inputs(), session.session.get_outputs())
            )
        else:  # a compiled model adds names of nodes; the server uses the model's own
            read = openvino_core().read_model(str(model))
            inputs, outputs = (
                [
                    Tensor(
                        port.get_any_name(),
                        _numpy_name(port.element_type.get_type_name()),
                        _closed(sides_of(port.partial_shape) or ()),
                    )
                    for port in found
                ]
                for found in (read.inputs, read.outputs)
            )
    names = [tensor.name for tensor in outputs]
    if names != list(card["outputs"]):
        raise PromiseError(
            f"{model.name} gives {', '.join(names)}, its card describes "
            f"{', '.join(card['outputs'])}: export it again"
        )
    return inputs, outputs


def _closed(sides: Iterable[object]) -> tuple[Side, ...]:
    """Return a shape without ONNX Runtime's names of dynamic dimensions."""
    return tuple(side if isinstance(side, int) else None for side in sides)


def _numpy_name(kind: str) -> str:
    return np.dtype(DTYPES[kind.removeprefix("tensor(").removesuffix(")")]).name
