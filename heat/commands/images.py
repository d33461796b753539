"""Detection on images, without torch."""

import json
import sys
from pathlib import Path

from .options import Result, Threads


def detect(
    bundle: Path,
    source: Path,
    /,
    *,
    score: float = 0.3,
    save: Path = Path("detections"),
    threads: Threads = None,
) -> Result:
    """Find objects in an image or a folder of images, without torch.

    Args:
        bundle: Folder written by heat export.
        source: Image file, or folder of images.
        score: Lowest score reported.
        save: Folder for the pictures with boxes and detections.json.
    """
    from deploy.detect import Bundle, detect_files, image_paths, summary
    from supernet.errors import DataError

    loaded = Bundle(bundle, threads)
    if not loaded.card["trained"]:
        print("warning: this bundle is UNTRAINED: its detections mean nothing", file=sys.stderr)
    records, broken = detect_files(loaded, image_paths(source), score=score, save=save)
    for record in records:
        print(
            f"{record['file']}: {len(record['names'])} objects, {record['latency_ms']:.1f} ms",
            file=sys.stderr,
        )
    print(f"pictures and detections.json are in {save}", file=sys.stderr)
    if broken:
        print(json.dumps(summary(records)))
        raise DataError(f"{len(broken)} file(s) cannot be decoded: {', '.join(broken[:5])}")
    return summary(records)
