"""The command `heat init`: three questions, and the one command that they make."""

import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

from latency_tables.device_file import find_device
from supernet.errors import DeviceError, HeatError, UserError

from ..records import Result


def init() -> Result | None:
    """Ask for data, device and target, and print the one command that builds the detector.

    In a terminal only; nothing is written.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            "heat init asks questions and needs a terminal: heat build --data DIR --target-fps FPS "
            "is the command that it makes"
        )
    data = _ask("Folder of labelled images, COCO or YOLO format (empty: generate some): ", _data)
    device = _ask("Device, as heat devices lists them (empty: this machine's CPU): ", _device)
    fps = _ask("Frames per second that it must reach: ", _fps)
    words = ["heat", "build", "--data", data or "cells", "--target-fps", fps]
    words += ["--device", device] if device != "cpu" else []
    words += ["--format", "tensorrt"] if find_device(device).kind == "cuda" else []
    command = " ".join(map(quote, words))
    if not data:
        command = f"heat data cells && {command}"
    if not sys.stdout.isatty():
        return {"command": command}
    print(f"\n{command}")
    return None


def _ask(question: str, check: Callable[[str], str]) -> str:
    """Ask until the answer passes; without any more input raise `UserError`."""
    while True:
        print(question, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise UserError("no answer: heat build --data DIR --target-fps FPS needs no questions")
        try:
            return check(line.strip())
        except HeatError as error:
            print(f"  {error}", file=sys.stderr)


def _data(answer: str) -> str:
    if not answer:
        return ""
    from supernet.data.coco import load_split

    found = load_split(Path(answer).expanduser(), "train")
    print(
        f"  {len(found.records)} training images, {found.num_boxes} boxes, "
        f"{found.num_classes} classes: {', '.join(found.names[:8])}",
        file=sys.stderr,
    )
    return str(Path(answer).expanduser())


def _device(answer: str) -> str:
    name = answer or "cpu"
    if find_device(name).kind == "cuda":
        from deploy.edge.engine import gpu_here

        if not gpu_here():
            raise DeviceError(
                f"{name}: no GPU is here; heat profile --device {name} --host measures one"
            )
    return name


def _fps(answer: str) -> str:
    try:
        fps = float(answer)
    except ValueError:
        raise UserError(f"{answer!r} is no number; 24 for instance") from None
    if not 0 < fps < float("inf"):
        raise UserError(f"{answer}: a number above 0")
    return f"{fps:g}"
