"""Exports a detector as a bundle, and lets nothing pass that does not compute what torch does."""

import datetime
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from supernet.atomic import write_text
from supernet.detector import Detector
from supernet.errors import PromiseError, UserError
from supernet.letterbox import PAD_RGB, Image, letterbox

from .bench import Speed, measure_speed
from .detect import CARD_FORMAT, file_hash
from .parity import MAX_RAW_BOX_PX, MAX_SCORE, MIN_IOU, Parity, compare
from .runtimes import open_session, runtime_version
from .standalone import detect_script

Format = Literal["onnx", "openvino"]

RUNTIME_OF: dict[str, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished bundle."""

    folder: Path
    card: dict[str, Any]
    parity: Parity
    speed: Speed


def export_bundle(
    network: Detector,
    folder: Path,
    *,
    format: Format,
    names: Sequence[str],
    images: Sequence[Image],
    threads: int,
    facts: dict[str, Any],
    measure: Callable[[Path], Speed] | None = None,
) -> Exported:
    """Write `folder` (model, card, detect.py) after checking it against torch on `images`.

    `facts` go into the card as they are: training, predictions, device. `measure` times the model
    file; without it the first image is detected on in bursts. The folder appears whole or not at
    all. Raises `PromiseError` when the artefact does not agree with torch.
    """
    if format not in RUNTIME_OF:
        raise UserError(f"--format {format}: one of {', '.join(RUNTIME_OF)}")
    if not images:
        raise UserError("export needs at least one image to compare with torch")
    runtime = RUNTIME_OF[format]
    version = runtime_version(runtime)
    architecture = network.architecture
    height, width = architecture.input_size
    preprocessing = {
        "height": height,
        "width": width,
        "layout": "NHWC",
        "dtype": "uint8",
        "colour": "RGB",
        "resize": "keep ratio, pad right and bottom",
        "pad_rgb": list(PAD_RGB),
        "normalisation": "in the graph",
    }
    metadata = {
        "names": json.dumps(list(names)),
        "input": json.dumps(preprocessing),
        "architecture": architecture.to_json(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*"):  # left by an export that was killed
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        onnx_bytes = network.to_onnx(metadata).SerializeToString()
        model = _write_model(onnx_bytes, metadata, scratch, format)
        session = open_session(runtime, model, threads)
        raw_model = network.to_onnx(raw=True).SerializeToString()
        parity = compare(network, session, open_session(runtime, raw_model, threads), images)
        if not parity.passed:
            raise PromiseError(
                f"the {format} model disagrees with torch on {parity.images} images: "
                f"{parity.unmatched} detections without partner, scores differ by "
                f"{parity.worst_score:.2g} (allowed {MAX_SCORE:g}), boxes by "
                f"{parity.worst_box_px:.2g} px (allowed {MAX_RAW_BOX_PX:g}); nothing was written"
            )
        if measure is not None:
            speed = measure(model)
        else:
            frame = letterbox(images[0], (height, width))[0][None]
            speed = measure_speed(session, {"image": frame})
        (scratch / "detect.py").write_text(detect_script(), encoding="utf-8")
        card = {
            "format": CARD_FORMAT,
            "model": model.name,
            "model_format": format,
            "runtime": runtime,
            "runtime_version": version,
            "precision": "f32",
            "threads": threads,
            "names": list(names),
            "input": preprocessing,
            "outputs": {
                "boxes_xyxy_px": "float32 [n, 4], n <= 100, pixels of the network input",
                "scores": "float32 [n]",
                "labels": "int64 [n], index into names",
            },
            "architecture": json.loads(architecture.to_json()),
            "macs": architecture.macs().total,
            "params": architecture.params_deployed(),
            "parity": asdict(parity) | {"min_iou": MIN_IOU, "against": "torch"},
            "measured_ms": round(speed.ms, 4),
            "measured_fps": round(speed.fps, 3),
            "p50_ms": round(speed.p50_ms, 4),
            "p95_ms": round(speed.p95_ms, 4),
            "date": datetime.date.today().isoformat(),
            **facts,
            "files": {path.name: file_hash(path) for path in sorted(scratch.iterdir())},
        }
        write_card(scratch, card)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(folder, card, parity, speed)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write `card.json` atomically."""
    write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")


def _write_model(onnx_bytes: bytes, metadata: dict[str, str], folder: Path, format: Format) -> Path:
    if format == "onnx":
        path = folder / "model.onnx"
        path.write_bytes(onnx_bytes)
        return path
    import openvino

    path = folder / "model.xml"
    model = openvino.Core().read_model(onnx_bytes)
    for key, text in metadata.items():  # not carried over from the ONNX file
        model.set_rt_info(text, ["heat", key])
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def _swap(scratch: Path, folder: Path) -> None:
    """Put the finished folder in place; the old one stays until then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
