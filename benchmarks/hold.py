"""A ladder holds a camera's rate while a load comes and goes; its most accurate network does not.

    python benchmarks/hold.py heat-run/bundle-ladder --hold-fps 30 --name hold

A local MJPEG stream takes the place of a camera: frames that come too late are dropped. After a
third of the time processes that compute without a pause start, two for each core, and end after two
thirds.
The ladder's own `detect.py` runs with --hold-fps, then without, so that its most accurate network
does all the work. The last line is one JSON object: frames, dropped frames and the time of frames
of each, and when networks took turns; with --name it goes to benchmarks/results/.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

from feeder import drawn_frames
from result import RESULTS, here, tell

from deploy.edge.detect import read_card
from deploy.edge.ladder import read_ladder


class Camera(BaseHTTPRequestHandler):
    """Sends drawn JPEGs at a rate, for so long, to whoever connects."""

    frames: ClassVar[list[bytes]] = []
    rate: ClassVar[float] = 30.0
    seconds: ClassVar[float] = 60.0

    def do_GET(self) -> None:
        """Answer with an endless image."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        start, number = time.monotonic(), 0
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < self.seconds:
                image = self.frames[number % len(self.frames)]
                head = (
                    f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                )
                self.wfile.write(head.encode() + image + b"\r\n")
                number += 1
                time.sleep(max(0.0, start + number / self.rate - time.monotonic()))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve(port: int, rate: float, seconds: float) -> None:
    """Be the camera until killed."""
    Camera.frames, Camera.rate, Camera.seconds = drawn_frames(), rate, seconds
    HTTPServer(("127.0.0.1", port), Camera).serve_forever()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def burn() -> None:
    """Compute until killed."""
    while True:
        sum(range(10_000))


def run(options: argparse.Namespace, hold: bool) -> dict[str, Any]:
    """Detect on a camera for the given time; return what is reported of it."""
    port = free_port()
    camera = multiprocessing.Process(
        target=serve, args=(port, options.hold_fps, options.seconds), daemon=True
    )
    camera.start()
    time.sleep(2)
    command = [sys.executable, str(options.ladder / "detect.py"), f"http://127.0.0.1:{port}/c.mjpg"]
    command += ["--threads", str(options.threads), "--frames", str(10**9)]
    command += ["--hold-fps", str(options.hold_fps)] if hold else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    load = [multiprocessing.Process(target=burn, daemon=True) for _ in range(options.load)]
    try:
        time.sleep(options.seconds / 3)
        for one in load:
            one.start()
        time.sleep(options.seconds / 3)
        for one in load:
            one.kill()
        out, _ = process.communicate()
    finally:
        camera.kill()
        process.kill()
    result = json.loads(out.splitlines()[-1])
    return {
        "frames": result["frames"],
        "dropped": result["dropped"],
        "fps": result["fps"],
        "inference_ms": result["ms"]["inference"],
        "end_to_end_ms": result["ms"]["end_to_end"],
        "hold": result.get("hold"),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ladder", type=Path)
    parser.add_argument("--hold-fps", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", type=int, default=2 * (os.cpu_count() or 1), help="processes")
    parser.add_argument("--name")
    options = parser.parse_args()
    cards = [read_card(options.ladder / rung["bundle"]) for rung in read_ladder(options.ladder)]
    size = (cards[0]["input"]["height"], cards[0]["input"]["width"])
    result = {
        "rungs": [
            {key: card[key] for key in ("target_fps", "measured_fps", "p50_ms", "macs")}
            for card in cards
        ],
        "hold_fps": options.hold_fps,
        "seconds": options.seconds,
        "load": f"{options.load} processes from 1/3 to 2/3 of the time",
        "held": run(options, hold=True),
        "most accurate alone": run(options, hold=False),
        **here(cards[0]["runtime"], options.threads, size),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
