"""Runs `heat detect` on its sources: images, videos, cameras and streams.

Every bundle's `detect.py` carries this file's text.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from supernet.errors import DataError, HeatError, UserError, masked
from supernet.letterbox import Image, read_image, why_unread

from .capture import Source, image_count, is_animated
from .drawing import draw
from .found import Finder, Found
from .labels import Labels
from .recorder import Recorder, show_frame
from .records import DetectResult, FrameRecord, ImageRecord, Saved, StreamOutputs, StreamResult
from .saving import outputs_of, recordings_of, write_image, write_whole
from .score_limits import Limits, check_score, score_limits
from .sources import expanded, image_paths, is_video, videos_in
from .stream import QUEUE, Frame, run_stream
from .tiles import detect_tiled
from .timed import warn_if_timed_otherwise
from .track import Tracker

CHANGE_S = 0.25
"""Seconds of frames that may wait where a rate is held."""
SAME_PLACE_IOU = 0.6
"""IoU above which boxes of several tiles are one object, where the bundle's card states none."""


@dataclass(frozen=True, kw_only=True)
class DetectOptions:
    """How objects are found and what is done with them."""

    score: float | None = None
    """Lowest score reported, of all classes; without it the bundle's own, or `SHOW_SCORE`."""
    save: Path | None = None
    show: bool = False
    limit: int = 0
    """Frames after which a video ends; 0 for none."""
    labels: str | None = None
    """Format of labels to write: coco or yolo."""
    all_boxes: bool = False
    """Whether several boxes of one object are reported; `Found.once` leaves one by default."""
    tiles: bool = False
    track: bool = False
    hold_fps: float | None = None
    """Frame rate that a ladder holds."""

    def __post_init__(self) -> None:
        """Refuse invalid thresholds and counts."""
        if self.score is not None:
            check_score(self.score)
        if self.limit < 0:
            raise UserError(f"--frames {self.limit}: at least 1, or 0 for all")
        if self.labels is not None and self.save is None:
            raise UserError(f"--labels {self.labels}: where to? give --save FOLDER")

        if self.tiles and self.hold_fps is not None:
            raise UserError("--hold-fps times whole frames: leave --tiles out")

    @property
    def waiting(self) -> int:
        """Frames that may wait to be processed: more where a rate is held, while a rung changes."""
        return max(QUEUE, math.ceil((self.hold_fps or 0.0) * CHANGE_S))

    def limits(self, bundle: Finder) -> Limits:
        """Return the lowest score reported of each class."""
        return score_limits(bundle.card, bundle.names, self.score)

    def finder(self, bundle: Finder) -> Callable[[Image], Found]:
        """Return a function that finds the objects of one image, whatever their score.

        They are each once, unless all boxes are asked for.
        """
        iou = bundle.card.get("decode", {}).get("nms_iou") or SAME_PLACE_IOU
        limits = self.limits(bundle)

        def find(image: Image) -> Found:
            if self.tiles:
                found = detect_tiled(bundle, image, iou)
            else:
                found = bundle.detect(image, score=0.0)
            return found if self.all_boxes else found.once(limits)

        return find


def detect_files(
    bundle: Finder, paths: Iterable[Path], options: DetectOptions
) -> tuple[list[ImageRecord], list[str]]:
    """Run the bundle on files; return a record for each, and the files that are not images.

    With a folder to save to, images with boxes, `detections.json` and labels are written there.
    """
    files, save = list(paths), options.save
    targets = outputs_of(files, save) if save is not None else {}
    labels = None
    if options.labels is not None and save is not None:
        labels = Labels(options.labels, save, bundle.names, files)
    find, limits = options.finder(bundle), options.limits(bundle)
    records: list[ImageRecord] = []
    broken: list[str] = []
    several: list[Path] = []
    for path in files:
        image = read_image(path)
        if image is None:
            broken.append(str(path))
            continue
        if image_count(path) > 1:
            several.append(path)
        found = find(image).above(limits)
        saved: Saved = {}
        if path in targets:
            written = write_image(targets[path], draw(image, found, bundle.names))
            saved["saved"] = str(written)
        if labels is not None:
            labels.add(path, image.shape[:2], found)
        records.append({"file": str(path), **found.record(bundle.names), **saved})
    if several:
        _warn(
            f"{several[0]}{_and_more(several)}: several images in one file (frames, or pages), of "
            "which only the first was looked at"
        )
    if save is not None:
        text = json.dumps(records, indent=1) + "\n"
        write_whole(save / "detections.json", text.encode())
    if labels is not None:
        labels.close()
    return records, broken


def detect_stream(
    bundle: Finder, source: str, options: DetectOptions, save: Path | None = None
) -> StreamResult:
    """Run the bundle on a video file, a camera or a stream; return the JSON line.

    With `save`, a path without suffix, a video with boxes (.mp4, of a camera .mkv) and a line of
    JSON for each frame (.jsonl) are written there. After Ctrl-C they are kept, after an error those
    of a camera.
    """
    limits = options.limits(bundle)
    opened = Source(source)
    maps = bundle.card.get("decode", {}).get("calibration")
    tracker = Tracker(opened.fps, limits, maps) if options.track else None
    try:
        recorder = None
        if save is not None:
            recorder = Recorder(save.parent, save.name, opened.fps, live=opened.live)
    except HeatError:
        opened.close()
        raise

    def finish(frame: Frame, found: Found) -> None:
        if tracker is not None:
            rows, ids = tracker.update(found.boxes_xyxy_px, found.scores, found.labels)
            shown = replace(found.at(rows), ids=ids)
        else:
            shown = found.above(limits)
        if recorder is None and not options.show:
            return
        drawn = draw(frame.image, shown, bundle.names)
        if recorder is not None:
            record: FrameRecord = {
                "frame": frame.number,
                "time_s": round(frame.time_s, 3),
                **shown.record(bundle.names),
            }
            recorder.add(drawn, record, None if opened.live else frame.time_s)
        if options.show:
            show_frame(drawn)

    whole = False
    try:
        tally = run_stream(
            opened, options.finder(bundle), finish, limit=options.limit, waiting=options.waiting
        )
        whole = tally.done > 0
    except KeyboardInterrupt:
        whole = True
        raise
    finally:
        if recorder is not None:
            if whole:
                recorder.close()
            else:
                recorder.discard()
    outputs: StreamOutputs = {}
    if tracker is not None:
        outputs["tracks"] = tracker.count
    held = bundle.held()
    if held is not None:
        outputs["hold"] = held
    if recorder is not None:
        outputs["saved"] = str(recorder.video)
    return {"source": masked(source), **tally.summary(), **outputs}


def detect_sources(
    bundle: Finder, sources: Sequence[str], options: DetectOptions
) -> tuple[DetectResult | StreamResult, list[str]]:
    """Run the bundle on images, folders and patterns, then on videos, cameras and streams.

    Return the JSON line and the problems. A single video's line is its own result; with several
    videos, or images too, `videos` has one result for each.
    """
    warn_if_timed_otherwise(bundle.card)
    save, sources = options.save, expanded(sources)
    videos = [source for source in sources if is_video(source) and not _still(source)]
    moving = set(videos)
    named = [Path(source) for source in sources if source not in moving]
    images = []
    for path in image_paths(named):
        if path.suffix.lower() == ".gif" and not _still(str(path)):  # in a folder
            videos.append(str(path))
        else:
            images.append(path)
    _warn_of_what_is_left_out(options, named, videos)
    saved = recordings_of(videos, save) if save is not None else {}
    results: list[StreamResult] = []
    problems: list[str] = []
    result: DetectResult = {}
    if images:
        records, broken = detect_files(bundle, images, options)
        result = summary(records)
        held = bundle.held()
        if held is not None:
            result["hold"] = held
        for file in broken:
            why = why_unread(Path(file))
            problems.append(
                f"{file} cannot be used: {why}"
                if why
                else f"{file} is no image that can be decoded"
            )
    for video in videos:
        try:
            done = detect_stream(bundle, video, options, saved.get(video))
        except DataError as error:
            if len(videos) == 1 and not images:
                raise
            problems.append(str(error))  # and go on with the other videos
            continue
        results.append(done)
        lost = what_was_lost(done)
        problems += [lost] if lost else []
    if len(videos) == 1 and not images:
        return results[0], problems
    if videos:
        result["videos"] = results
    return result, problems


def _warn_of_what_is_left_out(
    options: DetectOptions, named: Sequence[Path], videos: Sequence[str]
) -> None:
    """Name the options without effect, and the videos beside a folder's images."""
    if options.labels is not None and videos:
        _warn(f"--labels {options.labels} is for images: of {len(videos)} video(s) there are none")
    for option, given in (
        ("--track", options.track),
        ("--frames", options.limit),
        ("--show", options.show),
    ):
        if given and not videos:
            _warn(f"{option} is for videos, and these are images: it has no effect")
    for folder in filter(Path.is_dir, named):
        beside = [path for path in videos_in(folder) if str(path) not in videos]
        if beside:
            _warn(
                f"{beside[0]}{_and_more(beside)}: videos in a folder are left out, "
                f"'{folder / '*'}' takes them too"
            )


def _and_more(paths: Sequence[Path]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _still(source: str) -> bool:
    """Return whether a source is a GIF file of one image."""
    path = Path(source)
    return path.suffix.lower() == ".gif" and path.is_file() and not is_animated(path)


def summary(records: list[ImageRecord]) -> DetectResult:
    """Return the JSON line of images."""
    latencies = [record["latency_ms"] for record in records]
    return {
        "images": len(records),
        "detections": records,
        "latency_ms": float(np.median(latencies)) if latencies else None,
    }


def what_was_lost(result: StreamResult) -> str:
    """Return what was wrong with a stream's source; empty where nothing was."""
    source, done = result["source"], result["frames"]
    if result["ended"]:
        return f"{source}: {result['ended']}: is it still there?"
    if not done:
        return f"{source} has no frame that can be decoded"
    if result["broken"]:
        return f"{source}: {result['broken']} frame(s) cannot be decoded; the other {done} are done"
    return ""
