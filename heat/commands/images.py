"""Commands that run bundles, without torch: detect, bench."""

import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..records import Result
from .options import PrecisionName

OF_SAVED = ("detections.json", "labels.json")
"""JSON files that are written beside the images that are saved."""


def detect(
    bundle: Path,
    /,
    *sources: str,
    score: float | None = None,
    save: Path = Path("detections"),
    show: bool = False,
    frames: int = 0,
    labels: Literal["coco", "yolo"] | None = None,
    all_boxes: bool = False,
    tiles: bool = False,
    track: bool = False,
    hold_fps: float | None = None,
    json: Path | None = None,
    threads: int | None = None,
) -> Result:
    """Find objects in images, videos, a camera or a stream, without torch.

    A video is processed frame by frame. A camera keeps its rate: frames that a newer one overtakes
    are dropped and counted.

    Args:
        bundle: Folder written by heat export.
        sources: Images, folders, patterns, video files, camera numbers, stream URLs.
        score: Lowest score reported, of every class; by default each class has its own, where the
            export found them on labelled data (thresholds in card.json), and 0.3 where it did not.
        save: Folder for what was found: images and detections.json, or a video and a line of JSON
            for each frame. It is none of the sources' folders.
        show: Show a video in a window while it runs.
        frames: End a video after so many frames; 0 for all.
        labels: Also write what was found in images as labels, to be corrected and trained on.
        all_boxes: Report several boxes of one object too. By default each object is reported once:
            of boxes that overlap by an IoU above 0.4, whatever their classes, the one of the
            highest score.
        tiles: Look at images larger than the network's input in overlapping tiles too.
        track: Number the objects of a video and follow them (ByteTrack).
        hold_fps: Frame rate that a ladder (heat export --ladder) holds: a faster network takes over
            while the machine is too slow for the more accurate one.
        json: Also write the result's JSON to this file; only an earlier result is replaced.
        threads: CPU threads; those that the bundle was timed with by default.
    """
    from deploy.edge.ladder import open_finder
    from deploy.edge.work import DetectOptions, detect_sources
    from supernet.atomic import check_replaceable, write_text
    from supernet.errors import DataError, UserError

    from ..views.outputs import is_result

    if not sources:
        raise UserError("which images? heat detect BUNDLE IMAGE|FOLDER|PATTERN|VIDEO|CAMERA|URL...")
    if json is not None:
        check_replaceable(json, "--json", is_result)
        beside = json.parent.resolve().is_relative_to(save.resolve())
        if beside and (json.suffix != ".json" or json.name in OF_SAVED):
            raise UserError(
                f"--json {json}: what is found is saved under such names there; give another file"
            )
    options = DetectOptions(
        score=score,
        save=save,
        show=show,
        limit=frames,
        labels=labels,
        all_boxes=all_boxes,
        tiles=tiles,
        track=track,
        hold_fps=hold_fps,
    )
    with open_finder(bundle, threads, hold_fps) as loaded:
        if not loaded.card["trained"]:
            print("warning: this bundle is UNTRAINED: its detections mean nothing", file=sys.stderr)
        result, problems = detect_sources(loaded, sources, options)
    if "frames" in result:
        videos = [result]
    else:
        videos = result.get("videos", [])
        for record in result.get("detections", []):
            print(
                f"{record['file']}: {len(record['names'])} objects, {record['latency_ms']:.1f} ms",
                file=sys.stderr,
            )
    for video in videos:
        print(
            f"{video['source']}: {video['frames']} frames at {video['fps']:.1f} FPS, "
            f"{video['dropped']} dropped",
            file=sys.stderr,
        )
        if "hold" in video:
            turns = ", ".join(f"{name} {count}" for name, count in video["hold"]["frames"].items())
            print(
                f"held {hold_fps:g} FPS with {video['hold']['switched']} changes; frames by "
                f"network: {turns}",
                file=sys.stderr,
            )
    print(f"images, videos and detections are in {save}", file=sys.stderr)
    if json is not None:
        write_text(json, dumps(result) + "\n")
    if problems:
        raise DataError("; ".join(problems[:5]) + more(problems[5:]), result)
    return result


def more(left: list[str]) -> str:
    """Return in words how many problems were not listed."""
    return f"; and {len(left)} more" if left else ""


def bench(
    *models: str,
    runtime: Literal["onnxruntime", "openvino"] | None = None,
    precision: PrecisionName | None = None,
    threads: int | None = None,
    rounds: int = 15,
    throughput: bool = False,
    input_size: Annotated[
        str | None, Parameter(help="HxW of images, for models that leave it open.")
    ] = None,
    picture: Path | None = None,
) -> Result:
    """Time bundles and other models side by side: in turns, each in a process of its own.

    Args:
        models: Bundles, or .onnx and .xml files of anybody.
        runtime: Runtime of .onnx files.
        precision: Precision in which files that are no bundles are executed.
        threads: CPU threads of all models. By default those of each bundle, and for files that are
            no bundles those of the first bundle, or 1 without any.
        rounds: Turns that each model has.
        throughput: Also measure frames per second with a request on every core.
        picture: Draw the result here (.svg); only an earlier drawing is replaced.
    """
    from deploy.edge.runtimes import check_threads
    from supernet.errors import UserError
    from supernet.heatdetr.input_size import parse_sides

    from ..stages.bench import bench as run

    if not models:
        raise UserError("which models? heat bench BUNDLE...")
    if threads is not None:
        check_threads(threads)
    return run(
        [Path(model) for model in models],
        runtime=runtime,
        precision=precision,
        threads=threads,
        rounds=rounds,
        crowd=throughput,
        input_hw=None if input_size is None else parse_sides(input_size),
        picture=picture,
    )
