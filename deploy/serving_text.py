"""Writes the README of a serving layout: how a client prepares images and reads results."""

from collections.abc import Sequence

from .edge.card import Card

START = {
    "triton": (
        "docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 -v \"$PWD\":/models:ro \\\n"
        "    nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver --model-repository=/models"
    ),
    "ovms": (
        "docker run --rm -u \"$(id -u):$(id -g)\" -p 9000:9000 -p 8000:8000 -v \"$PWD\":/models:ro"
        " \\\n    openvino/model_server:latest --config_path /models/config.json --port 9000 "
        "--rest_port 8000"
    ),
}  # fmt: skip
SERVERS = {
    "triton": "NVIDIA Triton Inference Server (ONNX Runtime backend, on the CPU)",
    "ovms": "OpenVINO Model Server (on the CPU)",
}
RELEASE = {"triton": " (YY.MM is a release of Triton)", "ovms": ""}
COMPARED = {"triton": "config.pbtxt was written from what it declares", "ovms": "its outputs are "
            "those of card.json"}  # fmt: skip


def readme(
    layout: str, name: str, card: Card, inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """Return the README.txt of a layout."""
    facts = card["input"]
    height, width = facts["height"], facts["width"]
    pad = " ".join(map(str, facts["pad_rgb"]))
    meanings = [f"  {key}: {text}" for key, text in card["outputs"].items()]
    return "\n".join(
        [
            f"{name}, for {SERVERS[layout]}.",
            "Written by heat export --serving, which replaces this folder; copy it to change it.",
            "",
            f"Start the server in this folder{RELEASE[layout]}:",
            "",
            f"  {START[layout]}",
            "",
            f"Requests go to http://localhost:8000/v2/models/{name}/infer (KServe protocol 2).",
            f"It runs in {card['threads']} thread(s); the frame rate in card.json was measured "
            "without a server.",
            "",
            "Inputs:",
            *(f"  {text}" for text in inputs),
            "",
            "Before a request, the client",
            "  1. decodes the image as RGB, 8 bits, turned as its EXIF orientation asks;",
            f"  2. resizes it by s = min({height} / image height, {width} / image width), sides",
            "     rounded: a side that shrinks by the mean of areas (INTER_AREA of OpenCV), one",
            "     that grows linearly;",
            f"  3. puts it into the upper left corner of {height} rows of {width} pixels, the rest",
            f"     filled with RGB {pad}.",
            "Values stay uint8, 0 to 255: the normalisation is in the graph. letterbox() of the",
            "bundle's detect.py is steps 2 and 3.",
            "",
            "Outputs:",
            *(f"  {text}" for text in outputs),
            *meanings,
            "",
            "After it, the client",
            *_after(card),
            "",
            "Classes, by index:",
            *(f"  {index} {each}" for index, each in enumerate(card["names"])),
            "",
            f"How this was checked: the model was loaded from this folder by {card['runtime']} "
            f"{card['runtime_version']},",
            f"and {COMPARED[layout]}. The server itself was not run.",
            "",
        ]
    )


def _after(card: Card) -> list[str]:
    """Return the steps after the model, which depend on where its graph ends."""
    thresholds = card.get("thresholds") or {}
    kept = [f"{name} {value!r}" for name, value in thresholds.items() if value is not None]
    first = (
        ["  - decodes the maps and suppresses overlaps: Postprocess of the bundle's detect.py,",
         "    with the numbers of decode in card.json;"]
        if card["raw"] else []
    )  # fmt: skip
    least = card["decode"].get("score_threshold")
    graph = "outputs boxes of every score" if least is None else f"keeps all from {least:g} on"
    if card["decode"].get("calibration"):
        graph += ", before it calibrates the scores"
    return [
        *first,
        "  - divides x by new width / image width and y by new height / image height, and clips",
        "    boxes to the image;",
        f"  - drops what scores too little: the graph itself {graph}"
        + (f"; best F1 at {', '.join(kept)}." if kept else "."),
    ]
