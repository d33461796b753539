"""Annotations to boxes, by hand: what is kept, clipped, skipped and reported."""

import math
from typing import Any

import numpy as np
import pytest

from supernet.data.annotations import (
    LARGEST_ID,
    Objects,
    box_of,
    flag,
    has_box,
    image_key,
    look_like_corners,
    number,
    read_objects,
    whole,
)

SIZES = np.array([[100.0, 200.0], [100.0, 200.0]])
Problem = tuple[str, str, str]


def read(*annotations: Any, images: dict[Any, Any] | None = None) -> tuple[Objects, list[Problem]]:
    """Read annotations of the images 1 and 2, 200x100, and the classes 3 and 7."""
    problems: list[Problem] = []
    objects = read_objects(
        annotations, images or {1: 0, 2: 1}, SIZES, ["a.png", "b.png"], {3: 0, 7: 1}, "f.json",
        lambda *problem: problems.append(problem),
    )  # fmt: skip
    return objects, problems


def note(box: Any, image: Any = 1, category: Any = 3, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def test_numbers_flags_and_ids() -> None:
    assert number("1.5") == 1.5 and number(2) == 2.0 and whole("3.0") == 3 and whole(-4.0) == -4
    assert LARGEST_ID == 9007199254740992, "the whole numbers that a float holds exactly"
    assert whole(LARGEST_ID) == LARGEST_ID and whole(-LARGEST_ID) == -LARGEST_ID
    for wrong in (True, None, "1_0", "x", 10**400, [1]):
        with pytest.raises(ValueError):
            number(wrong)
    for wrong in (1.5, math.nan, math.inf, LARGEST_ID + 1, -LARGEST_ID - 1, "1e400", False):
        with pytest.raises(ValueError):
            whole(wrong)
    assert [flag(v) for v in (None, "", 0, "0", "false", " False ", False)] == [False] * 7
    assert [flag(v) for v in (1, "1", "true", " TRUE ", True)] == [True] * 5
    for wrong in ("yes", 0.5, [1]):
        with pytest.raises(ValueError):
            flag(wrong)
    assert [image_key(v) for v in (7, "7", " 7 ", 7.0, "07")] == [7] * 5
    assert image_key("1e5") == "1e5" and image_key("a.jpg") == "a.jpg"
    assert image_key(LARGEST_ID + 1) == str(LARGEST_ID + 1)
    assert image_key(str(LARGEST_ID + 1)) == str(LARGEST_ID + 1)
    for wrong in (True, 1.5, None):
        with pytest.raises((ValueError, TypeError)):
            image_key(wrong)


def test_where_a_box_is_stated() -> None:
    assert has_box({"bbox": [1, 2, 3, 4]}) and has_box({"bbox": [0, 0, 0, 0]})
    assert not has_box({}) and not has_box({"bbox": []}) and not has_box({"bbox": None})
    polygon = [[10, 20, 50, 20, 50, 60]]
    assert not has_box({"bbox": [0, 0, 0, 0], "segmentation": polygon})
    assert has_box({"bbox": [0, 0, 1, 0], "segmentation": polygon})
    assert box_of({"segmentation": polygon}) == (10, 20, 40, 40)
    assert box_of({"segmentation": polygon[0]}) == (10, 20, 40, 40), "without its list"
    two = [[10, 20, 50, 20, 50, 60], [0, 90, 5, 90, 5, 95]]
    assert box_of({"segmentation": two}) == (0, 20, 50, 75)
    for wrong in ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6, 7], [1]]):
        with pytest.raises(ValueError):
            box_of({"segmentation": wrong})
    for wrong in ("text", {"a": 1}, [1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError):
            box_of({"bbox": wrong})


def test_boxes_by_image_in_the_order_of_the_file() -> None:
    objects, problems = read(
        note([50, 10, 20, 30], image=2, category=7, iscrowd=1), note([0, 0, 10, 20], area=55),
        note([5.5, 6.5, 0.5, 0.25], image="2"),
    )  # fmt: skip
    assert problems == []
    assert objects.boxes_M4.tolist() == [[0, 0, 10, 20], [50, 10, 70, 40], [5.5, 6.5, 6, 6.75]]
    assert objects.labels_M.tolist() == [0, 1, 0] and objects.areas_M.tolist() == [55, 600, 0.125]
    assert objects.crowd_M.tolist() == [False, True, False]
    assert objects.of == (slice(0, 1), slice(1, 3))
    none, _ = read()
    assert none.boxes_M4.shape == (0, 4) and none.of == (slice(0, 0), slice(0, 0))


def test_what_leaves_the_image() -> None:
    """By a pixel it is clipped, by more that is reported; beyond the border it is skipped."""
    objects, problems = read(
        note([-1, 0, 11, 10], area=80), note([-1.5, 0, 11.5, 10], area=80),
        note([195, 20, 10, 10], area=40), note([200, 0, 10, 10]), note([0, 95.25, 4, 5.75]),
        note([210, -20, 10, 10]),
    )  # fmt: skip
    assert objects.boxes_M4.tolist() == [
        [0, 0, 10, 10], [195, 20, 200, 30], [0, 95.25, 4, 100],
    ]  # fmt: skip
    assert objects.areas_M.tolist() == [80, 40, 19], "the stated area, at most that of the box"
    assert [(kind, where, detail) for kind, where, detail in problems] == [
        ("box outside the image", "a.png", "[200.0, 0.0, 210.0, 10.0], skipped"),
        ("box outside the image", "a.png", "[210.0, -20.0, 220.0, -10.0], skipped"),
        ("box leaves the image", "a.png", "[-1.5, 0.0, 10.0, 10.0], clipped"),
        ("box leaves the image", "a.png", "[195.0, 20.0, 205.0, 30.0], clipped"),
        ("duplicate box", "a.png", "[-1.5, 0.0, 10.0, 10.0], skipped"),
    ]


def test_the_second_of_two_equal_boxes_is_skipped() -> None:
    box = [10, 20, 30, 40]
    objects, problems = read(
        note(box), note(box, category=7), note(box, image=2), note(box, iscrowd=1), note(box),
        note([10, 20, 30, 40.5]),
    )  # fmt: skip
    assert len(objects.labels_M) == 5
    assert [kind for kind, *_ in problems] == ["duplicate box"]


def test_what_is_skipped_and_why() -> None:
    mask = {"size": [50, 50], "counts": [0, 2500]}
    fits = {"size": [100, 200], "counts": [0, 20000]}
    objects, problems = read(
        "no record", note([0, 0, 1, "x"]), {"category_id": 3, "bbox": [0, 0, 1, 1]},
        note([0, 0, 5, 5], image=9), note([0, 0, 5, 5], category=4), note([0, 0, 0, 5]),
        note([0, 0, 5, -1]), note([0, 0, math.inf, 5]), note([math.nan, 0, 5, 5]),
        note(None, segmentation=mask), note(None, segmentation=fits), note([1, 1, 5, 5], area=-3),
        note([2, 2, 5, 5], area="x", segmentation=mask), note([0, 0, 5, 5], image=3),
        images={1: 0, 2: 1, 3: None},
    )  # fmt: skip
    assert [(kind, where.rpartition(" ")[2]) for kind, where, _ in problems] == [
        ("broken annotation", "annotations[0]"), ("broken annotation", "annotations[1]"),
        ("broken annotation", "annotations[2]"), ("unknown image", "annotations[3]"),
        ("unknown class", "annotations[4]"), ("degenerate box", "annotations[5]"),
        ("degenerate box", "annotations[6]"), ("degenerate box", "annotations[7]"),
        ("degenerate box", "annotations[8]"), ("mask of another size", "annotations[9]"),
    ]  # fmt: skip
    assert objects.boxes_M4.tolist() == [[0, 0, 200, 100], [1, 1, 6, 6], [2, 2, 7, 7]]
    assert objects.areas_M.tolist() == [20000, 25, 25]


def test_corners_in_place_of_sides() -> None:
    """Ten boxes of which more than a quarter would leave; one that is no corners clears all."""
    sizes = {1: (100.0, 200.0)}
    inside, leaving, edge = [10, 10, 50, 40], [150, 10, 190, 40], [101, 11, 201, 101]
    notes = [note(box) for box in [leaving] * 3 + [inside] * 7]
    assert "3 of 10 would leave" in str(look_like_corners(notes, sizes, 10))
    assert look_like_corners(notes, sizes, 11) is None, "too few to judge"
    assert look_like_corners([*notes[1:], *[note(inside)] * 2], sizes, 10) is None, "2 of 11"
    eight = [note(box) for box in [leaving] * 2 + [inside] * 6]
    assert look_like_corners(eight, sizes, 8) is None, "a quarter is not more than a quarter"
    assert "4 of 10" in str(look_like_corners([note(edge), *notes[:9]], sizes, 10))
    # As sides it ends a pixel beyond the image, which is no sign of corners.
    touching = [note([100, 10, 101, 40])] * 10
    assert look_like_corners(touching, sizes, 10) is None
    for wrong in ([10, 10, 202, 40], [10, 10, 50, 102], [50, 10, 50, 40], [10, 40, 50, 40]):
        assert look_like_corners([*notes, note(wrong)], sizes, 10) is None, wrong
    broken = [note("x"), note([1, 2]), {"bbox": [1, 2, 3, 4]}, "x", note([1, 2, 3, 4], image=5)]
    assert "3 of 10" in str(look_like_corners([*notes, *broken], sizes, 10))
