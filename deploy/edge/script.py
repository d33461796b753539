"""Runs a bundle as a program: `python detect.py SOURCE...`.

Every bundle's own `detect.py` carries this file's text, and ends with a call of it.
"""

import argparse
import json
import sys
from pathlib import Path

from supernet.errors import HeatError, refusal

from .found import ONCE_IOU
from .labels import LABEL_KINDS
from .ladder import open_finder
from .work import DetectOptions, detect_sources


def main(arguments: list[str]) -> int:
    """Run as a script: `python detect.py SOURCE...`."""
    parser = argparse.ArgumentParser(description="Detect objects with this bundle.")
    parser.add_argument(
        "sources",
        nargs="+",
        help="images, folders, patterns, video files, camera numbers, stream URLs",
    )
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument(
        "--score", type=float, help="lowest score shown (default: the card's thresholds, or 0.3)"
    )
    parser.add_argument("--save", type=Path, help="folder for images and videos with boxes")
    parser.add_argument("--show", action="store_true", help="show a video while it runs")
    parser.add_argument(
        "--hold-fps", type=float, help="frame rate that a ladder of several networks holds"
    )
    parser.add_argument("--frames", type=int, default=0, help="end a video after so many")
    parser.add_argument("--threads", type=int, help="threads (default: the card's)")
    parser.add_argument("--labels", choices=LABEL_KINDS, help="also write labels of images")
    parser.add_argument(
        "--all-boxes",
        action="store_true",
        help="report several boxes of one object too; by default only the best of those that "
        f"overlap (IoU above {ONCE_IOU:g}), whatever their classes",
    )
    parser.add_argument("--tiles", action="store_true", help="look at large images in tiles too")
    parser.add_argument("--track", action="store_true", help="number the objects of a video")
    given = parser.parse_args(arguments)
    try:
        options = DetectOptions(
            score=given.score,
            save=given.save,
            show=given.show,
            limit=given.frames,
            labels=given.labels,
            all_boxes=given.all_boxes,
            tiles=given.tiles,
            track=given.track,
            hold_fps=given.hold_fps,
        )
        with open_finder(given.bundle, given.threads, given.hold_fps) as bundle:
            result, problems = detect_sources(bundle, given.sources, options)
    except HeatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {refusal(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(json.dumps(result))
    return 2 if problems else 0
