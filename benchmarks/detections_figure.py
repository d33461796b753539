"""Draws the README's figure: what a bundle detects on six generated images it was not trained on.

    python benchmarks/detections_figure.py demo/run/bundle-onnx demo/cells/val

`make demo` makes both. The images are spread evenly over the folder, none is chosen; what is drawn
is what `heat detect` reports, with the thresholds of the card. The figure goes to
benchmarks/results/demo/generated/detections.jpg, and the last line is one JSON object.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from result import RESULTS, tell

from deploy.edge.detect import Bundle
from deploy.edge.found import Found
from supernet.errors import DataError

COLUMNS, ROWS = 3, 2
ZOOM = 2
COLOURS = ("#d81b60", "#1e5fd8", "#7b4a00", "#00796b", "#5e35b1", "#455a64")
"""Of the classes in turn; each has a contrast of 4.5 and more to the white text on it."""
QUALITY = 82


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--to", type=Path, default=RESULTS / "demo/generated/detections.jpg")
    options = parser.parse_args()
    paths = sorted(options.images.glob("*.jpg"))
    count = COLUMNS * ROWS
    if len(paths) < count:
        raise DataError(f"{options.images} has {len(paths)} .jpg images: {count} are needed")
    chosen = [paths[index * len(paths) // count] for index in range(count)]
    objects = 0
    with Bundle(options.bundle) as bundle:
        tiles = []
        for path in chosen:
            found = bundle.detect(path)
            objects += len(found.scores)
            tiles.append(drawn(path, found, bundle.names))
    width, height = tiles[0].size
    gap = 4 * ZOOM
    figure = Image.new("RGB", (COLUMNS * (width + gap) - gap, ROWS * (height + gap) - gap), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        figure.paste(tile, (column * (width + gap), row * (height + gap)))
    options.to.parent.mkdir(parents=True, exist_ok=True)
    figure.save(options.to, quality=QUALITY, optimize=True)
    tell({"figure": str(options.to), "images": [path.name for path in chosen], "objects": objects})


def drawn(path: Path, found: Found, names: list[str]) -> Image.Image:
    """Return an image, enlarged, with a box and a label for each object; the best lie on top."""
    image = Image.open(path).convert("RGB")
    image = image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(8 * ZOOM)
    for box, score, label in reversed(
        list(zip(found.boxes_xyxy_px.tolist(), found.scores, found.labels, strict=True))
    ):
        colour = COLOURS[int(label) % len(COLOURS)]
        x0, y0, x1, y1 = (side * ZOOM for side in box)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=ZOOM)
        text = f"{names[int(label)]} {score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, tall = right - left + 2 * ZOOM, bottom - top + 2 * ZOOM
        x = min(max(0.0, x0), image.width - wide)
        y = y0 - tall if y0 >= tall else y0
        pen.rectangle((x, y, x + wide, y + tall), fill=colour)
        pen.text((x + ZOOM - left, y + ZOOM - top), text, fill="white", font=font)
    return image


if __name__ == "__main__":
    main()
