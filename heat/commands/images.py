"""Commands that run bundles, without torch: detect, bench."""

import sys
from json import dumps
from pathlib import Path
from typing import Literal

from .options import PrecisionName, Result, Threads


def detect(
    bundle: Path,
    source: str,
    /,
    *,
    score: float = 0.3,
    save: Path = Path("detections"),
    show: bool = False,
    frames: int = 0,
    json: Path | None = None,
    threads: Threads = None,
) -> Result:
    """Find objects in images, a video, a camera or a stream, without torch.

    A video is worked off frame by frame. A camera keeps its rate: frames that a newer one overtakes
    are dropped and counted.

    Args:
        bundle: Folder written by heat export.
        source: Image, folder, pattern, video file, camera number, or stream URL.
        score: Lowest score reported.
        save: Folder for what was found: pictures and detections.json, or a video and a line of JSON
            for each frame.
        show: Show a video in a window while it runs.
        frames: End a video after so many frames.
        json: Also write the result's JSON to this file.
    """
    from deploy.detect import (
        Bundle,
        detect_files,
        detect_stream,
        image_paths,
        summary,
        what_was_lost,
    )
    from deploy.stream import is_video
    from supernet.atomic import write_text
    from supernet.errors import DataError

    loaded = Bundle(bundle, threads)
    if not loaded.card["trained"]:
        print("warning: this bundle is UNTRAINED: its detections mean nothing", file=sys.stderr)
    if is_video(source):
        result = detect_stream(loaded, source, score=score, save=save, show=show, limit=frames)
        print(
            f"{source}: {result['frames']} frames at {result['fps']:.1f} FPS, "
            f"{result['dropped']} dropped; the video and its detections are in {save}",
            file=sys.stderr,
        )
        if json is not None:
            write_text(json, dumps(result) + "\n")
        lost = what_was_lost(result)
        if lost:
            print(dumps(result))
            raise DataError(lost)
        return result
    records, broken = detect_files(loaded, image_paths(Path(source)), score=score, save=save)
    result = summary(records)
    for record in records:
        print(
            f"{record['file']}: {len(record['names'])} objects, {record['latency_ms']:.1f} ms",
            file=sys.stderr,
        )
    print(f"pictures and detections.json are in {save}", file=sys.stderr)
    if json is not None:
        write_text(json, dumps(result) + "\n")
    if broken:
        print(dumps(result))
        raise DataError(f"{len(broken)} file(s) cannot be decoded: {', '.join(broken[:5])}")
    return result


def bench(
    *models: Path,
    runtime: Literal["onnxruntime", "openvino"] | None = None,
    precision: PrecisionName | None = None,
    threads: Threads = None,
    rounds: int = 15,
    throughput: bool = False,
    picture: Path | None = None,
) -> Result:
    """Time bundles and other models side by side: in turns, each in a process of its own.

    Args:
        models: Bundles, or .onnx and .xml files of anybody.
        runtime: Runtime of .onnx files.
        precision: Precision in which files that are no bundles are executed.
        rounds: Turns that each model has.
        throughput: Also measure frames per second with a request on every core.
        picture: Draw the result here (.svg).
    """
    from deploy.runtimes import check_threads
    from supernet.errors import UserError

    from ..stages.bench import bench as run

    if not models:
        raise UserError("which models? heat bench BUNDLE...")
    if threads is not None:
        check_threads(threads)
    return run(
        models,
        runtime=runtime,
        precision=precision,
        threads=threads,
        rounds=rounds,
        crowd=throughput,
        picture=picture,
    )
