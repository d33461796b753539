"""Detectors of others, made here: ONNX files of the usual outputs, a transformers folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arrays = Mapping[str, np.ndarray]


def write_onnx(
    path: Path,
    outputs: Arrays,
    *,
    shape: Sequence[int | str] = (1, 3, 64, 96),
    dtype: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] | None = None,
    sizes: bool = False,
) -> Path:
    """Write a graph whose outputs are the given arrays, whatever the image.

    An output called `mean` is the mean of the input.
    """
    image = helper.make_tensor_value_info("image", dtype, shape)
    inputs = [image]
    if sizes:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    nodes, constants, results = [], [], []
    nodes.append(helper.make_node("Cast", ["image"], ["as_float"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceMean", ["as_float"], ["mean"], keepdims=0))
    constants.append(numpy_helper.from_array(np.float32(0), "zero"))
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    for name, array in outputs.items():
        constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_value"))
        nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [f"{name}_float"]))
        kind = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [f"{name}_float"], [name], to=kind))
        results.append(helper.make_tensor_value_info(name, kind, list(array.shape)))
    graph = helper.make_graph(nodes, "toy", inputs, results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(path))
    return path


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def nms_rows(*rows: Sequence[float]) -> np.ndarray:
    """Rows after NMS, padded to eight."""
    found = np.zeros((1, 8, 6), np.float32)
    for index, row in enumerate(rows):
        found[0, index] = row
    return found


def write_batched(path: Path, *, mixed: bool = False) -> Path:
    """Write a graph of an open batch axis, whose one row after NMS scores the image's mean.

    If `mixed`, that of all images together.
    """
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 64, 96])
    rows, place = nms_rows([0, 0, 48, 64, 0, 1]), np.zeros((1, 8, 6), np.float32)
    place[0, 0, 4] = 1
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    constants = [numpy_helper.from_array(rows, "rows"), numpy_helper.from_array(place, "place")]
    over = [0, 1, 2, 3] if mixed else [1, 2, 3]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=over, keepdims=1),
        helper.make_node("Squeeze", ["mean", "axes"], ["score"]),
        helper.make_node("Unsqueeze", ["score", "last"], ["scores"]),
        helper.make_node("Mul", ["scores", "place"], ["placed"]),
        helper.make_node("Add", ["placed", "rows"], ["out"]),
    ]
    last = numpy_helper.from_array(np.array([2], np.int64), "last")
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 8, 6])
    graph = helper.make_graph(nodes, "toy", [image], [out], [axes, last, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    helper.set_model_props(model, {"names": "['cat', 'dog', 'cow']"})
    onnx.save(model, str(path))
    return path
