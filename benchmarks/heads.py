"""AP and latency by head: NMS, NMS with box voting, and `--head one-to-one` without NMS.

    python benchmarks/heads.py --data DIR --work DIR --input-size 320x320 --epochs 100 --name bccd
    python benchmarks/heads.py --data DIR --work DIR --model heat-xs --seed 1 --only nms,voted

Trains a network with either head, as `frontier.py` does and in the same folders (voting needs no
training of its own), scores them on val, and times the deployed graphs, decoding included, on the
images of val in turns: the cost of NMS depends on the detections. The last line is one JSON object;
with --name it goes to benchmarks/results/heads-NAME.json.
"""

import statistics
import time

from frontier import ONE_TO_ONE, OURS, RESULTS, folder_of, parser_of, train_ours, trained
from result import here, tell

from deploy.edge.runtimes import open_session
from deploy.gate import torch_detect
from supernet.data.coco import load_split
from supernet.data.evaluate import evaluate
from supernet.heatdetr.input_size import parse_size
from supernet.letterbox import letterbox, read_image

HEADS = {"nms": "", "voted": "", "one-to-one": ONE_TO_ONE}
"""Heads, and what the names of their networks end in."""


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="heat-s", choices=OURS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(HEADS), help="heads, with commas between them")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    data = load_split(options.data, "val")
    heads, graphs = {}, {}
    for head in options.only.split(","):
        run = options.model + HEADS[head], options.seed
        facts = train_ours(run, options)
        network = trained(folder_of(run, options), head)
        metrics = evaluate(torch_detect(network), data)
        ap = {key: round(getattr(metrics, key), 4) for key in ("ap", "ap50", "ap75")}
        heads[head] = {"model": run[0], **ap, **facts, "head": head, "ms": {}}
        graphs[head] = network.to_onnx().SerializeToString()
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
