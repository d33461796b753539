"""An encoder that is an ONNX file, run by ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.edge.runtimes import open_session
from supernet.errors import UserError

from .encoder import (
    DEFAULT_HW,
    IMAGENET,
    PRESETS,
    EncoderFacts,
    EncoderRequest,
    Images,
    choose,
    facts_of,
    image_like,
    named_shapes,
    normalised,
)
from .maps import Maps
from .onnx_digest import onnx_digest

TYPES = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.UINT8: np.uint8,
}
"""Types of an image input; uint8 is given pixels as they are."""


class OnnxEncoder:
    """An ONNX graph with one image input, [B, 3, H, W] or [B, H, W, 3] of floats or uint8.

    A feature may be any tensor of the graph: one that is no output becomes one.
    """

    def __init__(self, request: EncoderRequest) -> None:
        """Load the file, expose the features asked for, and look at what it returns."""
        path = Path(request.source)
        graph = _read(path)
        digest = onnx_digest(path)  # before it is loaded: it says which file is missing
        self._input, self._type, self._channels_first, fixed_hw, self._single = _image_input(
            graph, path
        )
        input_hw = _size(request, fixed_hw)
        exposed = _expose(graph, request, path)
        model: bytes | Path = path
        if exposed:
            onnx.load_external_data_for_model(graph, str(path.parent))
            model = graph.SerializeToString()
        self._names = [output.name for output in graph.graph.output]
        self._session = open_session("onnxruntime", model, request.threads)
        plain = self._type is np.uint8
        if plain and request.normalisation is not None:
            raise UserError(
                f"{path} takes pixels of uint8, and normalises them itself: leave out "
                "--teacher-norm, --mean and --std"
            )
        self._normalisation = PRESETS["none"] if plain else request.normalisation or IMAGENET
        shapes = named_shapes(self._names, self._run(image_like(input_hw), request))
        chosen = choose(
            shapes,
            request,
            input_hw,
            channels_first=self._channels_first,
            hint=f"; {_last_map(graph)} by --feature",
        )
        self._facts = facts_of(request, digest, self._normalisation, input_hw, chosen)

    def facts(self) -> EncoderFacts:
        """Return what was found of it."""
        return self._facts

    def features(self, images_BHW3: Images) -> list[Maps]:
        """Return its features of images of its input size."""
        parts = np.split(images_BHW3, len(images_BHW3)) if self._single else [images_BHW3]
        outputs = [dict(zip(self._names, self._run(part), strict=True)) for part in parts]
        return [
            np.concatenate([found.read(output[found.name]) for output in outputs])
            for found in self._facts.maps
        ]

    def _run(self, images_BHW3: Images, request: EncoderRequest | None = None) -> list[Any]:
        inputs: Any = images_BHW3
        if self._type is not np.uint8:
            inputs = normalised(images_BHW3, self._normalisation).astype(self._type)
            if not self._channels_first:
                inputs = np.ascontiguousarray(inputs.transpose(0, 2, 3, 1))
        elif self._channels_first:
            inputs = np.ascontiguousarray(images_BHW3.transpose(0, 3, 1, 2))
        try:
            return self._session.run({self._input: inputs})
        except Exception as error:
            if request is None:
                raise
            height, width = images_BHW3.shape[1:3]
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{request.source} does not run on an image of {height}x{width} ({reason}): "
                "--teacher-size gives another size"
            ) from None


def _read(path: Path) -> Any:
    try:
        return onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise UserError(
            f"--teacher {path}: no such file; an ONNX file, a folder of transformers, or timm:NAME"
        ) from None
    except Exception as error:
        raise UserError(
            f"--teacher {path} is truncated or no ONNX file ({type(error).__name__}): export it "
            "again"
        ) from None


def _image_input(
    model: Any, path: Path
) -> tuple[str, Any, bool, tuple[int | None, int | None], bool]:
    """Return the input's name, type, order, size where it is fixed, and whether one image fits."""
    constants = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    shown = ", ".join(value.name for value in inputs)
    if len(inputs) != 1:
        raise UserError(f"{path} has {len(inputs)} inputs ({shown}): one, of images, is needed")
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    kind = TYPES.get(tensor.elem_type)
    first = len(dims) == 4 and dims[1] == 3
    if kind is None or not (first or (len(dims) == 4 and dims[3] == 3)):
        raise UserError(
            f"input {shown} of {path} has shape {dims}: images [B, 3, H, W] or [B, H, W, 3] of "
            "float32, float16 or uint8 are needed"
        )
    height, width = dims[2:] if first else dims[1:3]
    return inputs[0].name, kind, first, (height, width), dims[0] == 1


def _size(request: EncoderRequest, fixed_hw: tuple[int | None, int | None]) -> tuple[int, int]:
    asked = request.input_hw or tuple(
        fixed or default for fixed, default in zip(fixed_hw, DEFAULT_HW, strict=True)
    )
    if any(f not in (None, a) for f, a in zip(fixed_hw, asked, strict=True)):
        raise UserError(
            f"--teacher-size {asked[0]}x{asked[1]}: {request.source} takes "
            f"{'x'.join(str(side or 'any') for side in fixed_hw)} only"
        )
    return asked[0], asked[1]


def _expose(model: Any, request: EncoderRequest, path: Path) -> bool:
    """Make the tensors asked for outputs; return whether any was none before."""
    outputs = {value.name for value in model.graph.output}
    inner = {name for node in model.graph.node for name in node.output if name}
    exposed = False
    for name in request.features:
        if name not in outputs | inner:
            raise UserError(
                f"--feature {name}: {path} has no such tensor; its outputs are "
                f"{', '.join(sorted(outputs))}, {_last_map(model)}"
            )
        if name not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
            exposed = True
    return exposed


def _last_map(model: Any) -> str:
    """Return which tensor inside the graph is its last convolution's, for a message."""
    convolutions = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    return f"its last convolution is {convolutions[-1]}" if convolutions else "name a tensor of it"
