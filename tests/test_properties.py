"""Properties that hold of any value, on values that hypothesis chooses: always the same ones.

Readers of broken files are in `test_fuzzing.py`; here are values that are well formed, and strange.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_masks

from heat.stages.convert import UNFIT, convert
from heat.workspace import Workspace
from latency_tables.table import LatencyTable
from latency_tables.table_file import read_table, write_table
from supernet.boxes import iou_matrix
from supernet.data.annotations import number, whole
from supernet.data.coco import load_split
from supernet.data.formats import WRITERS
from supernet.data.masks import mask_box
from supernet.data.yolo_yaml import head_text, read_head
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.input_size import parse_sides, parse_size
from supernet.letterbox import boxes_to_image, boxes_to_input, letterbox
from tests.test_table import CONDITIONS, ROW
from tests.tool_exports import image

UNIT = Architecture(widths=(32, 32, 32, 32), blocks=("R", "R", "R", "R"))
few = settings(max_examples=60, derandomize=True, deadline=None, database=None, print_blob=False)
fewer = settings(few, max_examples=12)

NAMES = st.text(min_size=1, max_size=30).filter(lambda t: t == t.strip() and not UNFIT.search(t))
"""Class names that HEAT's own files may hold."""
SIDES = st.integers(1, 60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@few
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True))
@example(["no", "010", "1e3", "🐕", "a: b", "#x", '"', "\\", "x\x85y", "{}", "~", "é", "e\u0301"])
def test_class_names_survive_a_data_yaml(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.yaml"
        path.write_text(head_text(names, ["train"]), encoding="utf-8")
        assert list(read_head(path).names) == names


@pytest.mark.parametrize("kind", WRITERS)
@fewer
@given(
    st.lists(NAMES, min_size=1, max_size=4, unique=True),
    st.lists(st.tuples(*[st.floats(0, 90)] * 2, *[st.floats(1, 100)] * 2), max_size=5),
)
@example(["🐕", "<dog>&'\"", "a  b"], [(0.0, 0.0, 1.0, 1.0), (1 / 3, 2 / 3, 10 / 3, 100.0)])
def test_a_set_survives_every_format(
    kind: Any, names: list[str], boxes: Sequence[tuple[float, ...]]
) -> None:
    """Names and boxes come back, boxes to a fiftieth of a pixel."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        image(root / "set" / "train" / "a.png", 100, 90)
        file = {
            "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 90}],
            "categories": [{"id": 7 * i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": 7 * (i % len(names)), "bbox": list(box)}
                for i, box in enumerate(boxes)
            ],
        }
        (root / "set" / "annotations").mkdir()
        (root / "set" / "annotations" / "instances_train.json").write_text(json.dumps(file))
        first = load_split(root / "set", "train")
        if not len(first.records[0].labels):
            return
        convert(root / "set", root / "there", given="coco", to=kind, val=0.0)
        convert(root / "there", root / "back", given=kind, to="coco", val=0.0)
        again = load_split(root / "back", "train")
    for before, after in zip(first.records, again.records, strict=True):
        assert [first.names[i] for i in before.labels] == [again.names[i] for i in after.labels]
        np.testing.assert_allclose(before.boxes_xyxy, after.boxes_xyxy, atol=0.02)


@few
@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.booleans(), min_size=81, max_size=81))
def test_the_box_of_a_mask(height: int, width: int, drawn: list[bool]) -> None:
    """Runs as pycocotools writes them, and as lists; the box is that of the pixels."""
    pixels = np.array(drawn[: height * width], np.uint8).reshape(height, width)
    coded = coco_masks.encode(np.asfortranarray(pixels))
    ys, xs = np.nonzero(pixels)
    expected = (0.0, 0.0, 0.0, 0.0)
    if len(xs):
        expected = (
            xs.min(), ys.min(), xs.max() - xs.min() + 1.0, ys.max() - ys.min() + 1.0
        )  # fmt: skip
    text = {"size": [height, width], "counts": coded["counts"].decode()}
    assert mask_box(text) == expected
    column = pixels.T.ravel()
    starts = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *starts, len(column)]).tolist()
    assert mask_box({"size": [height, width], "counts": [0, *runs][column[0] ^ 1 :]}) == expected


@few
@given(SIDES, SIDES, SIDES, SIDES, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back_from_the_letterbox(
    height: int, width: int, rows: int, columns: int, share: list[float]
) -> None:
    x0, x1 = sorted(s * width for s in share[:2])
    y0, y1 = sorted(s * height for s in share[2:])
    pixels, scale = letterbox(np.zeros((height, width, 3), np.uint8), (rows, columns))
    assert pixels.shape == (rows, columns, 3)
    assert scale == pytest.approx(min(rows / height, columns / width))
    box = np.array([[x0, y0, x1, y1]], np.float32)
    back = boxes_to_image(boxes_to_input(box, scale, (height, width)), scale, (height, width))
    np.testing.assert_allclose(back, box, rtol=1e-5, atol=1e-4)


@few
@given(st.lists(st.integers(1, 8), min_size=4, max_size=4), st.integers(1, 100), st.data())
def test_an_architecture_survives_its_file(steps: list[int], classes: int, data: Any) -> None:
    blocks = tuple(data.draw(st.text("RSW", min_size=1, max_size=4)) for _ in range(4))
    first = Architecture(
        widths=tuple(32 * step for step in steps), blocks=blocks, num_classes=classes,
        input_size=(32 * data.draw(SIDES), 32 * data.draw(SIDES)),
    )  # fmt: skip
    again = Architecture.from_json(first.to_json())
    assert again == first and again.entries() == first.entries()


@fewer
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, exclude_min=True), st.floats(0, 1e6), st.integers(0, 99)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_a_table_survives_its_files(values: list[tuple[float, float, int]]) -> None:
    """Every bit of every number."""
    entries = sorted(UNIT.entries().values())
    rows = {
        entry: replace(ROW, ms=ms, uncertainty_ms=sd, samples=n)
        for entry, (ms, sd, n) in zip(dict.fromkeys(entries), values, strict=False)
    }
    table = LatencyTable(CONDITIONS, rows)
    with tempfile.TemporaryDirectory() as folder:
        assert read_table(write_table(table, Path(folder))) == table


@fewer
@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_a_result_survives_the_workspace(result: dict[str, Any]) -> None:
    result.pop("data", None)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.record("bench", result)
        found = workspace.stages()["bench"]
    assert {**found, "finished": 0} == {**result, "finished": 0}


@few
@given(st.text() | st.from_regex(r"\A\d{1,6}x\d{1,6}\Z") | st.from_regex(r"\A[0-9]+[xX]?[0-9]*\Z"))
@example("9" * 5000)
@example("9" * 5000 + "x" + "9" * 5000)
@example("٣٢x٣٢")
def test_a_size_is_two_sides_or_refused(text: str) -> None:
    for parse in (parse_sides, parse_size):
        try:
            height, width = parse(text)
        except UserError as error:
            assert str(error).isprintable()
        else:
            assert 0 < height < 10**5 and 0 < width < 10**5


@few
@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary())
@example(10**400)
@example("1_000")
def test_a_number_is_a_number_or_a_value_error(value: Any) -> None:
    for read in (number, whole):
        try:
            found = read(value)
        except ValueError:
            continue
        assert found == float(value) or (found != found and read is number)


@few
@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), min_size=1, max_size=5))
def test_overlaps_are_shares(corners: list[tuple[float, ...]]) -> None:
    import torch

    x0, y0, x1, y1 = torch.tensor(corners).unbind(1)
    boxes = torch.stack([x0.minimum(x1), y0.minimum(y1), x0.maximum(x1), y0.maximum(y1)], 1)
    overlap = iou_matrix(boxes, boxes)
    assert bool(((overlap >= 0) & (overlap <= 1 + 1e-5)).all())
    torch.testing.assert_close(overlap, overlap.T)
