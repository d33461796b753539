"""Exports of labelling tools, as they write them: an image or two, a dog and a cat."""

import json
from pathlib import Path

import cv2
import numpy as np

from tests.command_line import run


def image(path: Path, width: int = 200, height: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def write_voc_export(root: Path) -> None:
    """As labelImg and the 2007 set: a renamed file, decimals, a part within an object."""
    image(root / "JPEGImages" / "a.jpg")
    image(root / "JPEGImages" / "b.png")
    objects = (
        "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>10</xmin><ymin>20.5</ymin>"
        "<xmax>60</xmax><ymax>70</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
    )
    size = "<size><width>200</width><height>100</height><depth>3</depth></size>"
    for stem, stated in (("a", "old-name.jpg"), ("b", "b.png")):
        path = root / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation><filename>{stated}</filename>{size}{objects}</annotation>")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/trainval.txt").write_text("a\n")
    (root / "ImageSets/Main/test.txt").write_text("b 1\n")


def write_cvat_export(root: Path) -> None:
    image(root / "images" / "a.jpg")
    (root / "annotations.xml").write_text(
        "<annotations><meta><job><labels><label><name>cat</name></label><label><name>dog</name>"
        "</label></labels></job></meta><image id='0' name='some/where/a.jpg' subset='Validation' "
        "width='200' height='100'>"
        "<box label='dog' xtl='10' ytl='20.5' xbr='60' ybr='70'/>"
        "<box label='dog' xtl='40' ytl='40' xbr='80' ybr='60' rotation='90'/>"
        "<polygon label='cat' points='5,6;50,8;20,30'/><points label='cat' points='1,1'/>"
        "</image></annotations>"
    )


def write_tasks(root: Path) -> None:
    """An uploaded image, with one annotation that was cancelled and a rectangle that is turned."""
    image(root / "up" / "a b.jpg")
    value = {"x": 5, "y": 20.5, "width": 25, "height": 49.5, "rotation": 0}
    turned = {"x": 50, "y": 50, "width": 10, "height": 30, "rotation": 90}
    size = {"original_width": 200, "original_height": 100}
    result = [
        {"type": "rectanglelabels", "value": {**value, "rectanglelabels": ["dog"]}, **size},
        {"type": "rectanglelabels", "value": {**turned, "rectanglelabels": ["dog"]}, **size},
        {"type": "polygonlabels", **size,
         "value": {"points": [[2.5, 6], [25, 8], [10, 30]], "polygonlabels": ["cat"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]  # fmt: skip
    tasks = [
        {
            "id": 7,
            "data": {"image": "/data/upload/1/0a1b2c3d-a%20b.jpg"},
            "annotations": [{"was_cancelled": True, "result": []}, {"result": result}],
        }
    ]
    (root / "project-1.json").write_text(json.dumps(tasks))


def coco(names: list[str]) -> str:
    return json.dumps(
        {
            "images": [
                {"id": i, "file_name": name, "width": 200, "height": 100}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 3, "bbox": [10, 20.5, 50, 49.5]},
                {"id": 2, "image_id": 0, "category_id": 3, "bbox": [1, 1, 9, 9], "iscrowd": 1},
            ],
            "categories": [{"id": 3, "name": "dog"}],
        }
    )


def converted(source: Path, folder: Path, *options: object) -> dict[str, object]:
    code, result, errors = run("data", "convert", source, folder, *options)
    assert code == 0, errors
    return result
