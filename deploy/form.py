"""The deploy format of a network: file format, precision, outputs of the graph, GPU."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from supernet.errors import BundleError, UserError
from supernet.graph.batch import SIZES as BATCHES
from supernet.graph.batch import free_batch
from supernet.graph.nodes import Array
from supernet.graph.style import GraphStyle, Precision
from supernet.heatdetr.quantization import Quantization
from supernet.network import Network

from .build_engine import EnginePlan
from .edge.card import DecodeRule
from .edge.postprocess import Find, Postprocess, unpad
from .edge.runtimes import open_session, openvino_core
from .edge.session import Feeds, Session, import_runtime
from .nncf_int8 import quantize_with_nncf

Format = Literal["onnx", "openvino", "tensorrt"]

RUNTIME_OF: dict[Format, str] = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
FORMAT_OF: dict[str, Format] = {runtime: format for format, runtime in RUNTIME_OF.items()}

MODEL_FILES = {"onnx": "model.onnx", "openvino": "model.xml", "tensorrt": "model.engine"}


def refuse_gpu(format: Format, device_kind: str) -> None:
    """Refuse a bundle that is for a GPU (`device_kind` cuda) and would run on its CPU."""
    if device_kind == "cuda" and format != "tensorrt":
        raise UserError(
            f"--format {format}: its bundles run on the CPU, and this is for a GPU: --format "
            "tensorrt, or --device cpu"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The deploy format of a network."""

    format: Format = "onnx"
    precision: Precision = "f32"
    """Precision that the runtime executes."""
    raw: bool = False
    """The graph ends at the head's maps: decoding and NMS are left to `detect.py`."""
    dynamic_batch: bool = False
    """Any number of images at once; the outputs are then padded."""
    opset: int | None = None
    """ONNX opset, at least 17; None for the target's default."""
    threads: int = 1
    """Threads of this machine that it is checked and timed with."""
    deployed_threads: int | None = None
    """Threads that it is to run with, where it is for another machine."""
    engine: EnginePlan | None = None
    """For which GPU, of format tensorrt."""
    nncf: Array | None = field(default=None, compare=False, repr=False)
    """Images [B, H, W, 3] on which NNCF quantizes, in place of HEAT's own INT8."""
    timings: Path | None = None
    """File of kernel timings that builds of engines share."""

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.format not in RUNTIME_OF:
            raise UserError(f"--format {self.format}: one of {', '.join(RUNTIME_OF)}")
        if (self.engine is not None) != (self.format == "tensorrt"):
            raise UserError(f"--format {self.format} and an engine's GPU do not go together")
        if self.dynamic_batch and self.engine is not None:
            raise UserError("--dynamic-batch: an engine is built for one image at a time")
        if self.nncf is not None and (self.format, self.precision) != ("openvino", "int8"):
            raise UserError(
                "--quantizer nncf: for --format openvino --precision int8, not --format "
                f"{self.format} --precision {self.precision}"
            )
        if self.precision == "bf16" and not self.runs_here:
            raise UserError(
                "--precision bf16: nothing but the GPU can check it; export there, or in f16"
            )

    @property
    def runs_here(self) -> bool:
        """Whether this machine can execute the artefact; else ONNX Runtime checks its graph."""
        return self.engine is None or self.engine.here

    @property
    def runtime(self) -> str:
        """Runtime that the artefact is for."""
        return RUNTIME_OF[self.format]

    @property
    def checked_in(self) -> str:
        """Runtime that is compared with torch."""
        return self.runtime if self.runs_here else "onnxruntime"

    @property
    def written(self) -> Precision:
        """Precision of the ONNX model.

        An f32 model is quantized by NNCF, and computed in bf16 by OpenVINO, when asked to.
        """
        later = self.format == "openvino" and (self.precision != "int8" or self.nncf is not None)
        return "f32" if later else self.precision

    @property
    def padded(self) -> bool:
        """Whether the outputs have fixed shapes: of batches, and of runtimes without NMS."""
        return self.dynamic_batch or (self.engine is not None and not self.engine.has_nms)

    def graph(
        self,
        network: Network,
        plan: Quantization | None,
        metadata: dict[str, str] | None = None,
        *,
        raw: bool | None = None,
    ) -> bytes:
        """Return the ONNX model of a network; `raw` overrides the format's own."""
        usual = self.engine.opset if self.engine else None
        opset = usual if self.opset is None else self.opset
        style = GraphStyle.of(self.runtime, self.written, plan, opset)
        sizes = BATCHES if self.dynamic_batch else (1,)
        models = [
            network.to_onnx(
                metadata,
                raw=self.raw if raw is None else raw,
                style=style,
                padded=self.padded,
                batch=size,
            )
            for size in sizes
        ]
        model = free_batch(*models) if self.dynamic_batch else models[0]
        return bytes(model.SerializeToString())

    def write(
        self, graph: bytes, folder: Path, metadata: dict[str, str] | None = None
    ) -> tuple[Path, dict[str, int]]:
        """Write the model file from an ONNX model; also return an engine's typed precisions."""
        path = folder / MODEL_FILES[self.format]
        if self.engine is not None:
            return path, self.engine.build(graph, path, self.timings)
        if self.format == "onnx":
            path.write_bytes(graph)
            return path, {}
        model = openvino_core().read_model(graph)
        if self.nncf is not None:
            model = quantize_with_nncf(model, self.nncf)
        for key, text in (metadata or {}).items():  # not carried over from the ONNX file
            model.set_rt_info(text, ["heat", key])
        openvino = import_runtime("openvino")
        openvino.save_model(model, str(path), compress_to_fp16=False)
        return path, {}

    def open(self, graph: bytes, artefact: Path | None = None) -> Session:
        """Load the artefact; without one, or where it cannot run here, its ONNX model."""
        if not self.runs_here:
            return open_session("onnxruntime", graph, self.threads, self.precision)
        if artefact is None and self.nncf is not None:
            with tempfile.TemporaryDirectory() as folder:
                return self.open(graph, self.write(graph, Path(folder))[0])
        try:
            return open_session(self.runtime, artefact or graph, self.threads, self.precision)
        except BundleError as error:
            if self.precision == "f32":
                raise
            reason = " ".join(str(error.__cause__).split())[-200:]
            raise UserError(
                f"{self.runtime} cannot run this network in {self.precision} here ({reason}): "
                "export another --precision or --format; nothing was written"
            ) from None

    def finder(self, session: Session, network: Network) -> Find:
        """Return a function from inputs to boxes, scores and labels of one image."""
        post = None
        if self.raw:
            post = Postprocess(decode_rule(network), network.architecture.input_size)

        def find(pixels: Feeds) -> list[Array]:
            outputs = session.run(pixels)
            if post is not None:
                return post(*outputs)
            return unpad(*outputs) if self.padded else outputs

        return find


def decode_rule(network: Network) -> DecodeRule:
    """Return how detections are decoded from a network's outputs, as the card states it."""
    return cast(DecodeRule, network.decode.rule())
