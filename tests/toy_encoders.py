"""Encoders made here, whose features are known, and what a worker process may serve."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from supernet.errors import UserError

CHANNELS = 6
STRIDE = 16


def write_encoder(
    path: Path,
    *,
    shape: Sequence[int | str] = ("batch", 3, 64, 64),
    dtype: int = TensorProto.FLOAT,
    scale: float = 1.0,
    tokens: bool = False,
    logits_only: bool = False,
) -> Path:
    """Write an encoder whose `map` is mean colours over 16x16 pixels, and their negatives.

    The mean colours alone, `colours`, are inside the graph. `tokens` gives the map as a sequence
    after one class token; `logits_only` ends in `logits` of one number a channel.
    """
    channels_last = shape[3] == 3
    nodes = [helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT)]
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["values"], ["ordered"], perm=[0, 3, 1, 2]))
    weights = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32) * scale
    constants = [numpy_helper.from_array(weights[:, :, None, None], "weights")]
    source = "ordered" if channels_last else "values"
    sides = [STRIDE, STRIDE]
    nodes += [
        helper.make_node("AveragePool", [source], ["colours"], kernel_shape=sides, strides=sides),
        helper.make_node("Conv", ["colours", "weights"], ["map"]),
    ]
    output, sizes = "map", [shape[0], CHANNELS, None, None]
    if tokens:
        constants.append(numpy_helper.from_array(np.array([0, CHANNELS, -1]), "flat_shape"))
        nodes += [
            helper.make_node("Reshape", ["map", "flat_shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["cells"], perm=[0, 2, 1]),
            helper.make_node("ReduceMean", ["cells"], ["class"], axes=[1]),
            helper.make_node("Concat", ["class", "cells"], ["tokens"], axis=1),
        ]
        output, sizes = "tokens", [shape[0], None, CHANNELS]
    if logits_only:
        nodes.append(helper.make_node("ReduceMean", ["map"], ["logits"], axes=[2, 3], keepdims=0))
        output, sizes = "logits", [shape[0], CHANNELS]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", dtype, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, sizes)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


class Served:
    """An object in a worker."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise UserError(f"limit {limit}: 0 or more")
        self.limit = limit

    def double(self, number: int) -> int:
        if number > self.limit:
            raise UserError(f"{number} is too much")
        return 2 * number

    def divide(self, number: int) -> float:
        return 1 / number

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
