"""Reads and writes Label Studio's JSON: tasks with their results, and the shorter JSON-MIN.

Sides and corners are percent of the image; a rectangle is turned about its upper left corner.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ..atomic import write_text
from ..errors import DataError
from .annotations import Complain, number
from .coco_file import RawCoco
from .exported import Collected, Item, Written, around, split_name, turned
from .image_search import ImageSearch

NAME = "tasks.json"
CONFIG = "label-config.xml"
LOCAL = "/data/local-files/?d="
"""How a task names a file below the folder that Label Studio may read."""


class Value(TypedDict):
    """A rectangle; percent of the image."""

    x: float
    y: float
    width: float
    height: float
    rotation: float
    rectanglelabels: list[str]


class Region(TypedDict):
    """A labelled rectangle as a task's result has it."""

    id: str
    type: str
    from_name: str
    to_name: str
    original_width: int
    original_height: int
    image_rotation: int
    value: Value


def is_label_studio(raw: object) -> bool:
    """Return whether a JSON value is a list of tasks."""
    first = raw[0] if isinstance(raw, list) and raw else None
    return isinstance(first, dict) and ("data" in first or "image" in first)


def read_label_studio(path: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    """Return the splits of an export; images lie in `images`, or below it."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not is_label_studio(raw):
        raise DataError(f"{path} is no list of Label Studio's tasks: export as JSON")
    found = Collected(ImageSearch(images), complain)
    for index, task in enumerate(raw):
        where = f"{path.name} task {index}"
        if isinstance(task, dict):
            _read(task, found, where)
        else:
            complain("broken annotation", where, "skipped")
    return found.finish(path, by_name=True)


def _read(task: Mapping[str, object], found: Collected, where: str) -> None:
    data = task.get("data", task)
    facts = data if isinstance(data, dict) else {}
    texts = [facts.get(key) for key in ("image", "img", "ocr")]
    texts += [v for v in facts.values() if isinstance(v, str) and ("/" in v or "." in v)]
    stated = next((text for text in texts if isinstance(text, str)), "")
    given = facts.get("split")
    split = split_name(given) if isinstance(given, str) else ""
    regions = list(_regions(task, found, where))
    sides = next(((r.get("original_width"), r.get("original_height")) for r in regions), None)
    image_id = found.image(stated, split, sides, where)
    if image_id is None:
        return
    height, width = found.size(image_id)
    for number_of, region in enumerate(regions):
        try:
            labelled = _object(region, (height, width))
            if labelled is None:
                found.no_box(str(region.get("type", "region")))
                continue
            name, corners = labelled
            found.box(image_id, split, name, corners)
        except (ValueError, TypeError, KeyError):
            found.complain("broken annotation", f"{where} region {number_of}", "skipped")


def _regions(
    task: Mapping[str, object], found: Collected, where: str
) -> Iterator[Mapping[str, object]]:
    """Yield the results of a task's first annotation that was not cancelled."""
    annotations = task.get("annotations", task.get("completions"))
    if isinstance(annotations, list):
        whole = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
        if len(whole) > 1:
            found.complain("annotated twice", where, f"{len(whole)} annotations, the first is used")
        results = whole[0].get("result") if whole else None
    else:  # JSON-MIN: regions are values of the task itself, a list for each kind of label
        lists = [value for value in task.values() if isinstance(value, list)]
        results = [
            region
            for values in lists
            for region in values
            if isinstance(region, dict) and any(str(key).endswith("labels") for key in region)
        ]
    for region in results if isinstance(results, list) else ():
        if isinstance(region, dict):
            yield region


def _object(
    region: Mapping[str, object], size_hw: tuple[int, int]
) -> tuple[str, Sequence[float]] | None:
    """Return class and corners of a region; None where it has no box."""
    value = region.get("value", region)
    if not isinstance(value, dict):
        raise ValueError(value)
    height, width = size_hw
    if "rectanglelabels" in value:
        x, y, w, h = (number(value[key]) for key in ("x", "y", "width", "height"))
        x0, y0 = x / 100 * width, y / 100 * height
        corners = x0, y0, x0 + w / 100 * width, y0 + h / 100 * height
        degrees = number(value.get("rotation") or 0)
        box = turned(corners, degrees, (x0, y0)) if degrees else corners
        return _name(value["rectanglelabels"]), box
    if "polygonlabels" in value and isinstance(value.get("points"), list):
        points = [(number(x) / 100 * width, number(y) / 100 * height) for x, y in value["points"]]
        return _name(value["polygonlabels"]), around(points)
    return None


def _name(labels: object) -> str:
    if isinstance(labels, list) and labels and isinstance(labels[0], str) and labels[0].strip():
        return labels[0].strip()
    raise ValueError(labels)


def write_label_studio(root: Path, written: Written) -> None:
    """Write `tasks.json`, images as local files below `images/`, and the labelling interface."""
    tasks = [
        {
            "data": {"image": f"{LOCAL}{quote(f'images/{split}/{item.name}')}", "split": split},
            "annotations": [{"result": _results(item, written.names)}],
        }
        for split, items in written.splits.items()
        for item in items
    ]
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in written.names)
    write_text(root / NAME, json.dumps(tasks, indent=1) + "\n")
    write_text(
        root / CONFIG,
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n</View>\n',
    )


def _results(item: Item, names: Sequence[str]) -> list[Region]:
    record = item.record
    height, width = record.height, record.width
    found: list[Region] = []
    for (x0, y0, x1, y1), label in zip(
        record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True
    ):
        value: Value = {
            "x": 100 * x0 / width,
            "y": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
            "rotation": 0,
            "rectanglelabels": [names[label]],
        }
        found.append(
            {
                "id": f"box{len(found)}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value,
            }
        )
    return found
