"""Memory that scoring a split takes; a warning where it is much of the free memory."""

import sys
from contextlib import suppress
from pathlib import Path

from .average_precision import MAX_DETECTIONS, group_size
from .detection_set import DetectionSet

ROW_BYTES = 460
"""Memory of a detection, as a result row."""
SCORED_BYTES = 3900
"""Memory of pycocotools at most, for each detection of the classes that it scores at once.

Measured with 1,000 images of 100 objects: 1,842 bytes in one class, 3,831 in fifty.
"""
MUCH = 0.5
"""Share of the free memory from which on the user is warned."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def expected_mb(images: int, classes: int) -> float:
    """Return the memory that scoring takes at most, in MiB, with 100 detections in each image.

    Classes are scored in groups, so that their number does not count.
    """
    rows = images * MAX_DETECTIONS[-1]
    at_once = min(1.0, group_size(images) / max(1, classes))
    return rows * (ROW_BYTES + at_once * SCORED_BYTES) / 2**20


def free_mb() -> float | None:
    """Return the memory that is free for this process, in MiB; None where it is not known."""
    found: list[float] = []
    with suppress(OSError, ValueError, IndexError):
        text = MEMINFO.read_text(encoding="utf-8")
        found.append(int(text.split("MemAvailable:")[1].split()[0]) / 2**10)
    with suppress(OSError, ValueError):  # of a container; "max" is no limit
        limit, used = (
            int((CGROUP / name).read_text(encoding="utf-8"))
            for name in ("memory.max", "memory.current")
        )
        found.append((limit - used) / 2**20)
    return min(found, default=None)


def warn_of_memory(data: DetectionSet) -> None:
    """Print the memory that scoring a split may take, where it is much of the free memory."""
    needed, free = expected_mb(len(data.records), data.num_classes), free_mb()
    if free is not None and needed > MUCH * free:
        print(
            f"warning: scoring the {len(data.records)} images of {data.split} may take "
            f"{needed:.0f} MiB of memory, {free:.0f} MiB are free",
            file=sys.stderr,
        )
