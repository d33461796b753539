"""Runs an exported bundle on images, without torch.

`heat detect` and `heat.load` use this file; every bundle's own `detect.py` carries its text.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from supernet.errors import BundleError, DataError, HeatError
from supernet.letterbox import Image, boxes_to_image, letterbox, read_image

from .postprocess import Postprocess, unpad
from .runtimes import check_threads, core_count, open_session
from .stream import Frame, Recorder, Source, is_video, run_stream

CARD_FORMAT = 1
"""History of `card.json`: 1, the first."""
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SHOW_SCORE = 0.3
"""Default score below which objects are not reported."""


@dataclass(frozen=True)
class Found:
    """Objects of one image, best first."""

    boxes_xyxy_px: npt.NDArray[np.float32]
    """Corners in pixels of the image, [n, 4]."""
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    latency_ms: float
    """Time of the model itself: normalisation, network, and decoding and NMS if in the graph."""
    preprocess_ms: float = 0.0
    """Time of the resize."""
    postprocess_ms: float = 0.0
    """Time of what follows the model: boxes to the image, and decoding and NMS of a raw model."""

    def above(self, score: float) -> "Found":
        """Keep the objects of at least this score."""
        kept = self.scores >= score
        return replace(
            self,
            boxes_xyxy_px=self.boxes_xyxy_px[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
        )

    def record(self, names: list[str]) -> dict[str, Any]:
        """Return the objects for JSON."""
        return {
            "boxes_xyxy_px": [[round(float(v), 2) for v in b] for b in self.boxes_xyxy_px],
            "scores": [round(float(value), 4) for value in self.scores],
            "names": [names[int(label)] for label in self.labels],
            "latency_ms": round(self.latency_ms, 3),
        }


def read_card(folder: Path) -> dict[str, Any]:
    """Read and check a bundle's card."""
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle (no card.json): heat export makes one") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}): export again") from None
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise BundleError(f"{path} is not of card format {CARD_FORMAT}: export again")
    return card


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; export again") from None


class Bundle:
    """A loaded detector: `Bundle(folder).detect(image)`."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Check the files against the card and load the model."""
        self.folder = folder
        self.card = read_card(folder)
        for name, expected in self.card["files"].items():
            if file_hash(folder / name) != expected:
                raise BundleError(
                    f"{folder / name} is not the file the card describes: export again"
                )
        self.names: list[str] = self.card["names"]
        self.input_hw = (self.card["input"]["height"], self.card["input"]["width"])
        if threads is None:  # made on a machine with more cores, it runs on those that are here
            threads = min(int(self.card["threads"]), core_count())
        self.threads = check_threads(threads)
        self._session = open_session(
            self.card["runtime"],
            folder / self.card["model"],
            self.threads,
            self.card["precision"],
        )
        self._post: Callable[..., list[Any]] = lambda *outputs: list(outputs)
        if self.card.get("raw"):
            self._post = Postprocess(self.card["decode"], self.input_hw)
        elif self.card.get("padded"):
            self._post = unpad

    def detect(self, image: Image) -> Found:
        """Find objects in an RGB image [height, width, 3] uint8 of any size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"an RGB uint8 image [height, width, 3] is needed, got {image.dtype} {image.shape}"
            )
        marks = [time.perf_counter()]
        pixels, scale = letterbox(image, self.input_hw)
        marks.append(time.perf_counter())
        outputs = self._session.run({"image": pixels[None]})
        marks.append(time.perf_counter())
        boxes, scores, labels = self._post(*outputs)
        boxes = boxes_to_image(boxes, scale, image.shape[:2])
        marks.append(time.perf_counter())
        before, model, after = (1e3 * (b - a) for a, b in itertools.pairwise(marks))
        return Found(boxes, scores, labels, model, before, after)


def image_paths(source: Path) -> list[Path]:
    """Return the image files of a folder or a pattern (`shots/*.jpg`), or the one file."""
    if any(sign in str(source) for sign in "*?[") and not source.exists():
        root = Path(source.anchor or ".")
        matching = sorted(root.glob(str(source.relative_to(root) if source.anchor else source)))
        found = [path for path in matching if path.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise DataError(f"no image matches {source}")
        return found
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(f"no images in {source}: {', '.join(sorted(IMAGE_SUFFIXES))} are read")
        return found
    if not source.exists():
        raise DataError(f"no image or folder at {source}")
    return [source]


def draw(image: Image, found: Found, names: list[str]) -> Image:
    """Return a copy of the image with boxes and labels."""
    picture = np.ascontiguousarray(image[:, :, ::-1])
    thickness = max(1, round(min(image.shape[:2]) / 300))
    font_scale = max(0.4, min(image.shape[:2]) / 900)
    objects = list(zip(found.boxes_xyxy_px, found.scores, found.labels, strict=True))
    for box, score, label in reversed(objects):  # the best is drawn last, on top
        hue = int(label) * 67 % 180
        pixel = np.array([[[hue, 220, 230]]], dtype=np.uint8)
        colour = tuple(int(value) for value in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])
        x0, y0, x1, y1 = (round(float(side)) for side in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thickness)
        text = f"{names[int(label)]} {score:.2f}"
        (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_scale, thickness)
        top = y0 if y0 > tall + 4 else min(y0 + tall + 4, picture.shape[0])
        cv2.rectangle(picture, (x0, top - tall - 4), (x0 + wide, top), colour, -1)
        cv2.putText(
            picture, text, (x0, top - 3), cv2.FONT_HERSHEY_SIMPLEX, font_scale, (0, 0, 0), thickness
        )
    return np.ascontiguousarray(picture[:, :, ::-1]).astype(np.uint8)


def write_picture(path: Path, image: Image) -> None:
    """Write an RGB image file, whole or not at all."""
    ok, data = cv2.imencode(path.suffix, image[:, :, ::-1])
    if not ok:
        raise DataError(f"cannot write a picture as {path.suffix}")
    _write_whole(path, data.tobytes())


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, then rename; like `supernet.atomic`, which a bundle lacks."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def detect_files(
    bundle: Bundle, paths: Iterable[Path], *, score: float = SHOW_SCORE, save: Path | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the bundle on files; return a record for each, and the files that are no images.

    With `save`, pictures with boxes and `detections.json` are written there.
    """
    records: list[dict[str, Any]] = []
    broken: list[str] = []
    for path in paths:
        image = read_image(path)
        if image is None:
            broken.append(str(path))
            continue
        found = bundle.detect(image).above(score)
        records.append({"file": str(path), **found.record(bundle.names)})
        if save is not None:
            write_picture(save / f"{path.stem}.jpg", draw(image, found, bundle.names))
    if save is not None:
        text = json.dumps(records, indent=1) + "\n"
        _write_whole(save / "detections.json", text.encode())
    return records, broken


def detect_stream(
    bundle: Bundle,
    source: str,
    *,
    score: float = SHOW_SCORE,
    save: Path | None = None,
    show: bool = False,
    limit: int = 0,
) -> dict[str, Any]:
    """Run the bundle on a video file, a camera or a stream; return the JSON line.

    With `save`, a video with boxes and a line of JSON for each frame are written there.
    """
    opened = Source(source)
    stem = f"camera{source}" if source.isdigit() else Path(source.split("?")[0]).stem or "stream"
    recorder = Recorder(save, stem, opened.fps, show=show) if save is not None else None

    def finish(frame: Frame, found: Found) -> None:
        if recorder is not None:
            shown = found.above(score)
            record = {"frame": frame.number, **shown.record(bundle.names)}
            recorder.add(draw(frame.image, shown, bundle.names), record)

    try:
        tally = run_stream(opened, bundle.detect, finish, limit=limit)
    finally:
        if recorder is not None:
            recorder.close()
    return {"source": source, **tally.summary()}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON line of a detection run."""
    latencies = [record["latency_ms"] for record in records]
    return {
        "images": len(records),
        "detections": records,
        "latency_ms": float(np.median(latencies)) if latencies else None,
    }


def what_was_lost(result: dict[str, Any]) -> str:
    """Say what was wrong with a stream's source; empty where nothing was."""
    source, done = result["source"], result["frames"]
    if result["ended"]:
        return f"{source}: {result['ended']}: is it still there?"
    if not done:
        return f"{source} has no frame that can be decoded"
    if result["broken"]:
        return f"{source}: {result['broken']} frame(s) cannot be decoded; the other {done} are done"
    return ""


def main(arguments: list[str]) -> int:
    """Run as a script: `python detect.py SOURCE`."""
    parser = argparse.ArgumentParser(description="Detect objects with this bundle.")
    parser.add_argument(
        "source", help="image, folder, pattern, video file, camera number, or stream URL"
    )
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--score", type=float, default=SHOW_SCORE, help="lowest score shown")
    parser.add_argument("--save", type=Path, help="folder for pictures with boxes")
    parser.add_argument("--show", action="store_true", help="show a video while it runs")
    parser.add_argument("--frames", type=int, default=0, help="end a video after so many")
    parser.add_argument("--threads", type=int, help="threads (default: the card's)")
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle(given.bundle, given.threads)
        if is_video(given.source):
            result = detect_stream(
                bundle,
                given.source,
                score=given.score,
                save=given.save,
                show=given.show,
                limit=given.frames,
            )
            print(json.dumps(result))
            lost = what_was_lost(result)
            if lost:
                print(f"error: {lost}", file=sys.stderr)
            return 2 if lost else 0
        paths = image_paths(Path(given.source))
        records, broken = detect_files(bundle, paths, score=given.score, save=given.save)
    except HeatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for path in broken:
        print(f"error: {path} is no image that can be decoded", file=sys.stderr)
    print(json.dumps(summary(records)))
    return 2 if broken else 0
