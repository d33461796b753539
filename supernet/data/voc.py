"""Reads and writes Pascal VOC: an XML file of boxes for each image, splits as lists of names.

Coordinates are taken as they are written: labelling tools count pixels from 0, the original sets
from 1, and no file says which.
"""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..atomic import write_text
from ..errors import DataError
from .annotations import Complain
from .coco_file import RawCoco
from .exported import Collected, Item, Written, read_xml
from .image_search import ImageSearch

SETS = "ImageSets/Main"
FLAG = re.compile(r"\s+-?[01]$")
BOX = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Return whether a folder holds annotations of this format."""
    first = next(_files(root), None)
    if first is None:
        return False
    try:
        return read_xml(first).tag == "annotation"
    except DataError:
        return False


def read_voc(root: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    """Return the splits of a folder; images lie in `images`, or below it."""
    found = Collected(ImageSearch(images), complain)
    split_of = _splits(root)
    for file in _files(root):
        try:
            _read(file, file.relative_to(_folder(root)).parent.as_posix(), found, split_of)
        except DataError as error:
            complain("broken annotation file", str(file), f"{error}, skipped")
    return found.finish(root, by_name=True)


def _folder(root: Path) -> Path:
    return root / "Annotations" if (root / "Annotations").is_dir() else root


def _files(root: Path) -> Iterator[Path]:
    return iter(sorted(_folder(root).rglob("*.xml")))


def _splits(root: Path) -> dict[str, str]:
    """Return the split of each name that the lists have; trainval counts only by itself."""
    found: dict[str, str] = {}
    annotated = {file.stem for file in _files(root)}

    def name_of(line: str) -> str:
        """Return the name of a line; lists of a class end in whether it is there: -1, 0 or 1."""
        return line if line in annotated else FLAG.sub("", line)

    for split in ("trainval", "test", "val", "train"):
        path = root / SETS / f"{split}.txt"
        if path.is_file():
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            names = [name_of(line.strip()) for line in text.splitlines() if line.strip()]
            found |= dict.fromkeys(names, "train" if split == "trainval" else split)
    return found


def _read(file: Path, below: str, found: Collected, split_of: dict[str, str]) -> None:
    root = read_xml(file)
    split = split_of.get(file.stem)
    if split_of and split is None:
        found.complain("in no split", file.name, f"not in the lists of {SETS}, skipped")
        return
    split = split or ""
    stated = (root.findtext("filename") or "").strip()
    # Tools rename images and leave the old name in the file: the file's own name is the surer one.
    named = file.stem + Path(stated).suffix
    places = [f"{folder}/{name}" for folder in (below, "") for name in (named, stated)]
    image = next((place for place in places if found.search.find(place)), file.stem)
    size = root.find("size")
    wh = None if size is None else (size.findtext("width"), size.findtext("height"))
    image_id = found.image(image, split, wh, file.name)
    if image_id is None:
        return
    for index, item in enumerate(root.iterfind("object")):
        box = item.find("bndbox")
        if box is None:
            found.no_box("object without bndbox")
            continue
        try:
            corners = [box.findtext(side, "") for side in BOX]
            found.box(image_id, split, (item.findtext("name") or "").strip(), corners)
        except ValueError:
            found.complain("broken annotation", f"{file.name} object {index}", "skipped")


def voc_items(written: Written) -> Written:
    """Return the set with names that are distinct without their folders and suffixes."""
    for prefixed in (False, True):
        splits = {
            split: [
                Item(f"{split}_{flat}" if prefixed else flat, item.record)
                for item in items
                for flat in (item.name.replace("/", "_"),)
            ]
            for split, items in written.splits.items()
        }
        counts = Counter(Path(i.name).stem for items in splits.values() for i in items)
        if max(counts.values()) == 1:
            return Written(written.names, written.category_ids, splits)
    raise DataError(f"Pascal VOC: two images would be called {counts.most_common(1)[0][0]}")


def write_voc(root: Path, written: Written) -> None:
    """Write `Annotations/*.xml` and `ImageSets/Main/SPLIT.txt`; images lie in `JPEGImages/`."""
    for split, items in written.splits.items():
        for item in items:
            root_of = _annotation(item, written)
            ET.indent(root_of)
            text = ET.tostring(root_of, encoding="unicode")
            write_text(root / "Annotations" / f"{Path(item.name).stem}.xml", text + "\n")
        names = "".join(f"{Path(item.name).stem}\n" for item in items)
        write_text(root / SETS / f"{split}.txt", names)


def _annotation(item: Item, written: Written) -> ET.Element:
    root = ET.Element("annotation")
    _child(root, "folder", "JPEGImages")
    _child(root, "filename", item.name)
    size = ET.SubElement(root, "size")
    record = item.record
    for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        _child(size, key, value)
    _child(root, "segmented", 0)
    for box, label in zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True):
        thing = ET.SubElement(root, "object")
        _child(thing, "name", written.names[label])
        _child(thing, "pose", "Unspecified")
        _child(thing, "truncated", 0)
        _child(thing, "difficult", 0)
        corners = ET.SubElement(thing, "bndbox")
        for key, side in zip(BOX, box, strict=True):
            _child(corners, key, f"{side:.2f}".rstrip("0").rstrip("."))
    return root


def _child(parent: ET.Element, tag: str, value: object) -> None:
    ET.SubElement(parent, tag).text = str(value)
