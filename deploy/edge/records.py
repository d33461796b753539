"""The JSON that detection writes: records of images, frames and videos, and the result line.

Needs Python's own library only; every bundle's `detect.py` carries this file's text.
"""

from typing import NotRequired, TypedDict, final


class FoundRecord(TypedDict):
    """The objects of one image, best first."""

    boxes_xyxy_px: list[list[float]]
    """Corners in pixels of the image."""
    scores: list[float]
    names: list[str]
    latency_ms: float
    ids: NotRequired[list[int]]
    """Numbers of tracked objects."""


class CocoResult(TypedDict):
    """An object as COCO's results json has it."""

    image_id: int
    category_id: int
    bbox: list[float]
    """x, y, width and height in pixels."""
    score: float


class Saved(TypedDict, total=False):
    """Where the image or video with boxes was written, if it was."""

    saved: str


class ImageRecord(FoundRecord, Saved):
    """An entry of `detections.json`."""

    file: str


class FrameRecord(FoundRecord):
    """A line of a recording's .jsonl file."""

    frame: int
    time_s: float
    """Its time in the video."""


class StepTimes(TypedDict):
    """Percentiles of a step's time, ms."""

    p50: float
    p95: float
    p99: float


class StreamSummary(TypedDict):
    """Counts and rates of a video, a camera or a stream."""

    frames: int
    """Frames on which objects were detected."""
    read: int
    dropped: int
    broken: int
    seconds: float
    fps: float
    source_fps: float | None
    """None where the source reports no rate."""
    ended: str | None
    """Why a live source ended, if the user did not end it."""
    ms: dict[str, StepTimes]
    """By step: decode, preprocess, inference, postprocess, draw, end_to_end; and the
    interval between two frames."""


class Switch(TypedDict):
    """Another network of a ladder takes over."""

    frame: int
    """Number of frames before it, of all sources."""
    rung: str
    """The network that takes over."""
    before_ms: float
    """What the last frame took the one before."""


class Held(TypedDict):
    """How a ladder held a frame rate."""

    hold_fps: float
    frames: dict[str, int]
    """By network, the most accurate first."""
    switched: int
    switches: list[Switch]
    """The first hundred."""


class StreamOutputs(Saved, total=False):
    """What options of `heat detect` add to the result of a stream."""

    tracks: int
    """Number of tracked objects."""
    hold: Held


class StreamResult(StreamSummary, StreamOutputs):
    """The result of a video, a camera or a stream."""

    source: str


@final
class DetectResult(TypedDict, total=False):
    """The result of images, of several videos, or of both."""

    images: int
    detections: list[ImageRecord]
    latency_ms: float | None
    """Median."""
    hold: Held
    videos: list[StreamResult]
