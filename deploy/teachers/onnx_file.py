"""A detector in an ONNX file, run by ONNX Runtime.

What the file does not state comes from files beside it (`config.json`, `preprocessor_config.json`,
as Optimum writes them) or from the user.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from supernet.data.evaluate import Found
from supernet.errors import UserError
from supernet.heatdetr.input_size import parse_sides
from supernet.letterbox import PAD_RGB, Image

from ..edge.runtimes import OnnxRuntimeSession, open_session
from ..edge.session import Array, Feeds
from ..feeds import COLOURS, DTYPES, Side, declared
from .asked import Asked, Format, Norm
from .encoder import PRESETS, Normalisation
from .inputs import Fit, InputRule, read_json, stated_fit, stated_values, to_image
from .names import in_order
from .outputs import Outputs, read, recognised

SIZES = "orig_target_sizes"
"""Second input of exported RT-DETRs and D-FINEs: width and height of the image, int64 [1, 2]."""
LETTERBOXED = ("yolo", "yolo-objectness", "nms")
"""Formats of networks whose images keep their ratio."""


class OnnxDetector:
    """Finds objects with somebody's ONNX file."""

    def __init__(self, path: Path, asked: Asked, threads: int) -> None:
        """Load the file, and run it once to see its outputs."""
        session = open_session("onnxruntime", path, threads)
        assert isinstance(session, OnnxRuntimeSession)
        self._session, self.path = session, path
        metadata = dict(session.session.get_modelmeta().custom_metadata_map)
        self.names = _names(path, asked, metadata)
        self._image, sides, dtype = self._image_input()
        channels_last = sides[3] in COLOURS and sides[1] not in COLOURS
        self._channels_last = channels_last
        processor = read_json(path.parent / "preprocessor_config.json")
        hw = _size(path, sides, channels_last, asked, metadata, processor)
        unit = InputRule(Fit(hw), PRESETS["none"], channels_last, dtype)
        blank = np.full((*hw, 3), PAD_RGB, dtype=np.uint8)
        outputs = self._run([unit.prepare(blank)[0]])[0]
        self.format: Format = asked.teacher_format or recognised(outputs, len(self.names))
        values, self.norm = _values(asked, processor, self.format, dtype)
        fit = Fit(hw, stretch=self.format not in LETTERBOXED)
        self.rule = InputRule(fit, values, channels_last, dtype)
        read(self.format, outputs, hw, len(self.names))
        self.batched = sides[0] is None and self._takes_two(blank)

    def __str__(self) -> str:
        """Return what was recognised, for a log line."""
        height, width = self.rule.fit.input_hw or (0, 0)
        return f"{self.format}, input {height}x{width}, values {self.norm}"

    def detect(self, images: Sequence[Image]) -> Iterator[Found]:
        """Find the objects of each image: boxes in its pixels, scores, class indices."""
        prepared = [self.rule.prepare(image) for image in images]
        inputs = [pixels for pixels, _ in prepared]
        runs = [inputs] if self.batched else [[one] for one in inputs]
        found = (outputs for run in runs for outputs in self._run(run))
        for outputs, image, (_, ratio) in zip(found, images, prepared, strict=True):
            hw = self.rule.fit.hw(image.shape[:2])
            boxes, scores, labels = read(self.format, outputs, hw, len(self.names))
            yield to_image(boxes, ratio, image.shape[:2]), scores, labels

    def _image_input(self) -> tuple[str, list[Side], np.dtype[np.generic]]:
        found = [row for row in declared(self._session) if row[1] is not None and len(row[1]) == 4]
        if len(found) != 1:
            raise UserError(f"{self.path}: one input of four axes is needed, it has {len(found)}")
        name, sides, kind = found[0]
        assert sides is not None
        return name, sides, np.dtype(DTYPES[kind.removeprefix("tensor(").removesuffix(")")])

    def _takes_two(self, blank: Image) -> bool:
        """Return whether two images together give what each gives alone: not all graphs do."""
        noise = np.random.default_rng(0).integers(0, 256, blank.shape, dtype=np.uint8)
        inputs = [self.rule.prepare(image)[0] for image in (blank, noise)]
        alone = [self._run([one])[0] for one in inputs]
        try:
            together = self._run(inputs)
        except UserError:
            return False
        return all(
            both[name].shape == one[name].shape
            and np.allclose(both[name], one[name], rtol=1e-3, atol=1e-2)
            for both, one in zip(together, alone, strict=True)
            for name in one
        )

    def _run(self, inputs: Sequence[Array]) -> list[Outputs]:
        """Run inputs [1, ...] together; return the outputs of each by name, [1, ...]."""
        pixels = np.concatenate(inputs)
        feeds: dict[str, Array] = {self._image: pixels}
        rows, columns = (1, 2) if self._channels_last else (2, 3)
        size = [pixels.shape[columns], pixels.shape[rows]]
        for name, sides, _ in declared(self._session):
            if name == SIZES or (name != self._image and sides is not None and sides[1:] == [2]):
                feeds[name] = np.array([size] * len(pixels), np.int64)
        found = dict(zip(self._outputs(), self._execute(feeds), strict=True))
        if len(inputs) == 1:
            return [found]
        return [
            {name: array[index : index + 1] for name, array in found.items()}
            for index in range(len(inputs))
        ]

    def _outputs(self) -> list[str]:
        return [output.name for output in self._session.session.get_outputs()]

    def _execute(self, feeds: Feeds) -> list[Array]:
        try:
            return self._session.run(feeds)
        except Exception as error:  # the runtime's own
            shape = list(feeds[self._image].shape)
            reason = " ".join(str(error).split())[:150]
            raise UserError(
                f"{self.path} does not run on an image {shape} ({reason}): --teacher-size HxW"
            ) from None


def _names(path: Path, asked: Asked, metadata: Mapping[str, str]) -> tuple[str, ...]:
    if asked.teacher_names is not None:
        try:
            text = asked.teacher_names.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--teacher-names {asked.teacher_names}: {error}") from None
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    elif "names" in metadata:
        names = in_order(_literal(metadata["names"]), f"{path}: names in its metadata")
    else:
        config = read_json(path.parent / "config.json") or {}
        names = in_order(config.get("id2label", {}), f"{path.parent / 'config.json'}: id2label")
    if not names:
        raise UserError(f"{path} does not name its classes: --teacher-names FILE, one a line")
    return names


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _size(
    path: Path,
    sides: list[Side],
    channels_last: bool,
    asked: Asked,
    metadata: Mapping[str, str],
    processor: Mapping[str, object] | None,
) -> tuple[int, int]:
    """Return height and width: the graph's, the user's, or what is stated elsewhere."""
    height, width = (sides[1], sides[2]) if channels_last else (sides[2], sides[3])
    if height is not None and width is not None:
        if asked.teacher_size is not None and parse_sides(asked.teacher_size, "--teacher-size") != (
            height,
            width,
        ):
            raise UserError(f"--teacher-size {asked.teacher_size}: {path} takes {height}x{width}")
        return height, width
    if asked.teacher_size is not None:
        return parse_sides(asked.teacher_size, "--teacher-size")
    stated = _literal(metadata.get("imgsz", ""))
    if isinstance(stated, list | tuple) and len(stated) == 2:
        return int(stated[0]), int(stated[1])
    fit = stated_fit(processor) if processor is not None else Fit(None)
    if fit.input_hw is None:
        raise UserError(f"{path} leaves height and width open: --teacher-size HxW")
    return fit.input_hw


def _values(
    asked: Asked,
    processor: Mapping[str, object] | None,
    format: Format,
    dtype: np.dtype[np.generic],
) -> tuple[Normalisation, str]:
    """Return the normalisation, and its name with where it comes from."""
    if dtype == np.uint8:
        if asked.teacher_norm is not None:
            raise UserError(
                f"--teacher-norm {asked.teacher_norm}: {asked.teacher} takes pixels of uint8, and "
                "normalises them itself: leave it out"
            )
        return PRESETS["raw"], "raw"
    if asked.teacher_norm is not None:
        return PRESETS[asked.teacher_norm], asked.teacher_norm
    if processor is not None:
        return stated_values(processor), "as preprocessor_config.json has it"
    guess: Norm = "imagenet" if format == "detr-softmax" else "none"
    return PRESETS[guess], f"{guess} (usual for {format}; --teacher-norm states others)"
