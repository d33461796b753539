"""AP and cost of `heat detect --tiles`, by object size: whole images, and with tiles too.

    python benchmarks/tiles.py --data DIR --work DIR --input-size 320x320 --epochs 46 --name NAME

Trains heat-s as `frontier.py` does, in the same folder, exports it for ONNX Runtime, and scores
the bundle on val twice, image by image in turns: on whole images, and on whole images and
overlapping tiles of the network's input size, merged by the same NMS. The last line is one JSON
object; with --name it goes to benchmarks/results/tiles-NAME.json.
"""

import statistics
import time
from collections.abc import Callable

from frontier import parser_of, train_ours, trained
from result import RESULTS, here, tell

from deploy.edge.detect import Bundle
from deploy.edge.found import Found
from deploy.edge.tiles import detect_tiled, tile_starts
from deploy.export import export_bundle
from deploy.form import Form
from heat.thinning.judging import images_of
from supernet.data.coco import load_split
from supernet.data.coco_file import ResultRow
from supernet.data.evaluate import result_rows, score_rows
from supernet.data.labelled_image import load_image
from supernet.heatdetr.input_size import parse_size
from supernet.letterbox import Image

MODEL = "heat-s"


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    size = parse_size(options.input_size)
    facts = train_ours((MODEL, 0), options)
    data = load_split(options.data, "val")
    folder = options.work / MODEL / "bundle"
    export_bundle(
        trained(options.work / MODEL),
        folder,
        Form(format="onnx", precision="f32", threads=options.threads),
        names=list(data.names),
        images=images_of(data, None),
        facts={"trained": True},
    )
    with Bundle(folder) as bundle:
        iou = bundle.card["decode"]["nms_iou"]
        ways: dict[str, Callable[[Image], Found]] = {
            "whole": lambda image: bundle.detect(image, score=0.0),
            "tiles": lambda image: detect_tiled(bundle, image, iou),
        }
        rows: dict[str, list[ResultRow]] = {way: [] for way in ways}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for record in data.records:
            image = load_image(record).pixels
            for way, detect in ways.items():
                start = time.perf_counter()
                found = detect(image)
                seconds[way].append(time.perf_counter() - start)
                boxes = found.boxes_xyxy_px, found.scores, found.labels
                rows[way] += result_rows(record, boxes, data)
    counts = [
        len(tile_starts(record.height, size[0])) * len(tile_starts(record.width, size[1]))
        for record in data.records
    ]
    result = {
        "data": options.data.name,
        "network": MODEL,
        "training": facts,
        "images": len(data.records),
        "tiles_per_image": statistics.median(counts),
        **{
            way: {
                **score_rows(rows[way], data).rounded(),
                "ms_per_image": round(1e3 * statistics.median(seconds[way]), 2),
            }
            for way in ways
        },
        **here("onnxruntime", options.threads, size),
    }
    tell(result, RESULTS / f"tiles-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
