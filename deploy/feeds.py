"""Draws random inputs for any model, from the types and shapes that it declares.

Needs numpy and the runtime only.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from supernet.errors import UserError

from .edge.runtimes import OnnxRuntimeSession, OpenVinoSession
from .edge.session import Array, Feeds, Session

DTYPES: dict[str, type[np.generic]] = {
    "float": np.float32, "float32": np.float32, "f32": np.float32,
    "float16": np.float16, "f16": np.float16,
    "double": np.float64, "float64": np.float64, "f64": np.float64,
    "bool": np.bool_, "boolean": np.bool_,
    "int8": np.int8, "i8": np.int8, "uint8": np.uint8, "u8": np.uint8,
    "int16": np.int16, "i16": np.int16, "uint16": np.uint16, "u16": np.uint16,
    "int32": np.int32, "i32": np.int32, "uint32": np.uint32, "u32": np.uint32,
    "int64": np.int64, "i64": np.int64, "uint64": np.uint64, "u64": np.uint64,
}  # fmt: skip
"""Types by the names that runtimes use."""
COLOURS = (1, 3, 4)
"""Numbers of channels of an image."""

Side = int | None
"""A dimension of a shape; None where it is dynamic."""


def inputs_of(session: Session, input_hw: tuple[int, int] | None = None) -> dict[str, Array]:
    """Draw inputs for a model, each in its own type; a dynamic batch is 1.

    Raises `UserError` where a model leaves the height and width of its images open and `input_hw`
    is None, and where an input is of no type or shape that can be drawn.
    """
    rng = np.random.default_rng(0)
    return {
        name: _drawn(rng, closed_shape(name, sides, input_hw), _dtype(name, kind))
        for name, sides, kind in declared(session)
    }


def refuse_open_ranks(session: Session, model: Path) -> None:
    """Refuse a model for ONNX Runtime whose input has no known rank.

    ONNX Runtime reports such an input as a scalar; `onnx` tells the two apart.
    """
    if not isinstance(session, OnnxRuntimeSession):
        return
    scalars = {name for name, sides, _ in declared(session) if sides == []}
    if not scalars:
        return
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise UserError(
            f"input {min(scalars)} is a scalar or has no known rank: pip install onnx to find out"
        ) from None
    for value in onnx.load(str(model), load_external_data=False).graph.input:
        if value.name in scalars and not value.type.tensor_type.HasField("shape"):
            closed_shape(value.name, None, None)


def described(feeds: Feeds) -> str:
    """Return types and shapes in words."""
    return ", ".join(
        f"{name} {array.dtype} {'x'.join(map(str, array.shape))}" for name, array in feeds.items()
    )


def closed_shape(
    name: str, sides: list[Side] | None, input_hw: tuple[int, int] | None
) -> tuple[int, ...]:
    """Return a shape without dynamic dimensions: batch 1, height and width `input_hw`."""
    if sides is None:
        raise UserError(f"input {name} has no known rank: export it with fixed shapes")
    shape = [1 if index == 0 and side is None else side for index, side in enumerate(sides)]
    if None in shape:
        rows, columns = _image_axes(sides)
        opened = [index for index, side in enumerate(shape) if side is None]
        words = "x".join("?" if side is None else str(side) for side in sides)
        if len(sides) != 4:
            raise UserError(
                f"input {name} ({words}) has dynamic dimensions that are not an image's: export "
                "it with fixed shapes"
            )
        if input_hw is None:
            raise UserError(
                f"input {name} ({words}) leaves height and width open: give --input-size HxW"
            )
        values = {rows: input_hw[0], columns: input_hw[1]}
        for index in opened:
            shape[index] = values.get(index, 3)  # any other is the channels
    closed = tuple(int(side or 0) for side in shape)
    if 0 in closed:
        raise UserError(f"input {name} has a dimension of 0: {'x'.join(map(str, closed))}")
    return closed


def _image_axes(sides: list[Side]) -> tuple[int, int]:
    """Return the axes of height and width: channels are the last axis, or the second."""
    last = len(sides) == 4 and sides[3] in COLOURS and sides[1] not in COLOURS
    return (1, 2) if last else (2, 3)


def _dtype(name: str, kind: str) -> np.dtype[np.generic]:
    word = kind.removeprefix("tensor(").removesuffix(")")
    if word not in DTYPES:
        raise UserError(f"input {name} is of type {kind}, which cannot be drawn")
    return np.dtype(DTYPES[word])


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind == "f":
        return rng.random(shape, dtype=np.float32).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype=dtype)
    if len(shape) < 4 and dtype.itemsize > 1:  # sizes and indices: 1 is valid everywhere
        return np.ones(shape, dtype=dtype)
    return rng.integers(0, 128 if dtype == np.int8 else 256, shape).astype(dtype)


def declared(session: Session) -> list[tuple[str, list[Side] | None, str]]:
    """Return name, sides and type of each input; no sides where the rank is not known."""
    if isinstance(session, OnnxRuntimeSession):
        return [
            (i.name, [side if isinstance(side, int) else None for side in i.shape], i.type)
            for i in session.session.get_inputs()
        ]
    if isinstance(session, OpenVinoSession):
        return [
            (port.get_any_name(), sides_of(port.partial_shape), port.element_type.get_type_name())
            for port in session.compiled.inputs
        ]
    found: list[tuple[str, list[Side] | None, str]] = session.declared()  # type: ignore[attr-defined]
    return found


def sides_of(shape: Any) -> list[Side] | None:
    """Return the dimensions of an OpenVINO shape; None where its rank is dynamic."""
    if shape.rank.is_dynamic:
        return None
    return [side.get_length() if side.is_static else None for side in shape]
