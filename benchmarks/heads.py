"""AP and latency of a head without NMS: `--head one-to-one` against `--head nms`.

    python benchmarks/heads.py --data DIR --work DIR --input-size 320x320 --epochs 100 --name bccd

Trains heat-s with either head, as `frontier.py` does and in the same folders, scores both on val,
and times the deployed graphs, decoding included, on the images of val in turns: the cost of NMS
depends on the detections. The last line is one JSON object; with --name it goes to
benchmarks/results/heads-NAME.json.
"""

import statistics
import time

from frontier import RESULTS, parser_of, scored, train_ours, trained
from result import here, tell

from deploy.edge.runtimes import open_session
from supernet.data.coco import load_split
from supernet.heatdetr.input_size import parse_size
from supernet.letterbox import letterbox, read_image

HEADS = {"nms": "heat-s", "one-to-one": "heat-s-one-to-one"}


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    size = parse_size(options.input_size)
    data = load_split(options.data, "val")
    heads, graphs = {}, {}
    for head, name in HEADS.items():
        facts = train_ours((name, 0), options)
        heads[head] = {"model": name, **scored((name, 0), options, data), **facts, "ms": {}}
        graphs[head] = trained(options.work / name).to_onnx().SerializeToString()
    inputs = []
    for record in data.records:
        image = read_image(record.path, (record.height, record.width))
        assert image is not None
        inputs.append(letterbox(image, size)[0][None])
    result = {"data": options.data.name, "heads": heads}
    for runtime in ("onnxruntime", "openvino"):
        sessions = {head: open_session(runtime, graph, options.threads)
                    for head, graph in graphs.items()}  # fmt: skip
        seconds: dict[str, list[float]] = {head: [] for head in sessions}
        for number, x_BHWC in enumerate(inputs * 3):
            for head, session in sessions.items():
                start = time.perf_counter()
                session.run({"image": x_BHWC})
                if number:
                    seconds[head].append(time.perf_counter() - start)
        for head, times in seconds.items():
            heads[head]["ms"][runtime] = round(1e3 * statistics.median(times), 3)
        result[runtime] = here(runtime, options.threads, size)
    tell(result, RESULTS / f"heads-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
