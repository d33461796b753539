"""AP and cost of `heat detect --tiles`, by object size: whole images, and with tiles too.

    python benchmarks/tiles.py --data DIR --work DIR --input-size 320x320 --epochs 46 --name NAME

Trains heat-s as `frontier.py` does, in the same folder, exports it for ONNX Runtime, and scores
the bundle on val twice: on whole images, and on whole images and overlapping tiles of the network's
input size, merged by the same NMS. The last line is one JSON object; with --name it goes to
benchmarks/results/tiles-NAME.json.
"""

import statistics
import time

from frontier import parser_of, train_ours, trained
from result import RESULTS, here, tell

from deploy.edge.detect import Bundle
from deploy.edge.tiles import detect_tiled, tile_starts
from deploy.export import export_bundle
from deploy.form import Form
from heat.thinning.judging import images_of
from supernet.data.coco import load_split
from supernet.data.evaluate import Found, found_rows, score_rows
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
    found = {}
    with Bundle(folder) as bundle:
        iou = bundle.card["decode"]["nms_iou"]
        for way in ("whole", "tiles"):
            seconds: list[float] = []

            def detect(image: Image, way: str = way, seconds: list[float] = seconds) -> Found:
                start = time.perf_counter()
                if way == "tiles":
                    result = detect_tiled(bundle, image, iou)
                else:
                    result = bundle.detect(image, score=0.0)
                seconds.append(time.perf_counter() - start)
                return result.boxes_xyxy_px, result.scores, result.labels

            metrics = score_rows(found_rows(detect, data), data)
            found[way] = {
                **metrics.rounded(),
                "ms_per_image": round(1e3 * statistics.median(seconds), 2),
            }
    counts = [
        len(tile_starts(record.height, size[0])) * len(tile_starts(record.width, size[1]))
        for record in data.records
    ]
    result = {
        "data": options.data.name,
        "model": MODEL,
        **facts,
        "images": len(data.records),
        "tiles_per_image": statistics.median(counts),
        **found,
        **here("onnxruntime", options.threads, size),
    }
    tell(result, RESULTS / f"tiles-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
