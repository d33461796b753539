"""ACT's figures: probability of sharing a code, error by hashes and buckets, clusters.

    python benchmarks/act_figures.py --work DIR --data DIR --name bccd

`--work` is the workspace of a trained DETR (`heat train`, `heat adopt`). Four figures: the
probability that two vectors share a code against their distance, by the closed form and by sampling
hash functions; the attention error of the encoder's first layer against the number of hashes L and
bucket width r (the paper's Figure 6); clusters as a share of the tokens by layer and L (Figure 9);
and the clusters of one head in each layer, painted on an image (Figure 8). Queries are those of
real images. The last line is one JSON object; with --name figures and numbers go to
benchmarks/results/act-figures/NAME/, the painted image to the workspace: it is not ours to publish.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from result import RESULTS, here, tell
from torch import Tensor

from heat.stages.network import load_network
from heat.views.charts import save
from heat.workspace import Workspace
from supernet.attention import ActAttention, Attention
from supernet.attention.hashing import BUCKET, Hash, cluster, collision_probability
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.detr.detr import Host
from supernet.letterbox import letterbox, read_image
from supernet.train.mtkd import attending

ROUNDS = (16, 20, 24, 32)
BUCKETS = (2.0, 4.0, 6.0, 8.0, 12.0)
DISTANCES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
SEEDS = 5


class Recording(Attention):
    """Exact attention that records queries, keys and values."""

    def __init__(self) -> None:
        """Start with no records."""
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(
        self, q_BHNE: Tensor, k_BHME: Tensor, v_BHME: Tensor, pad_BM: Tensor | None = None
    ) -> Tensor:
        """Attend, and record the inputs."""
        self.seen.append((q_BHNE, k_BHME, v_BHME))
        return super().attend(q_BHNE, k_BHME, v_BHME, pad_BM)


@torch.inference_mode()
def record(network: Host, data: DetectionSet, count: int) -> list[Recording]:
    """Return each layer's queries, keys and values on some images."""
    cores = [Recording() for _ in range(network.architecture.encoder_layers)]
    with attending(network, cores):
        for entry in data.records[:count]:
            image = read_image(entry.path, (entry.height, entry.width))
            assert image is not None
            pixels = letterbox(image, network.architecture.input_size)[0]
            network(torch.from_numpy(pixels)[None])
    return cores


def collisions() -> dict[str, list[float]]:
    """Return the probability of sharing a code by the closed form, and by sampling hashes."""
    drawn = []
    for distance in DISTANCES:
        x, step = torch.randn(4000, 1, 32), torch.randn(4000, 1, 32)
        y = x + distance * BUCKET * step / step.norm(dim=-1, keepdim=True)
        same = [
            (hash_.codes(x) == hash_.codes(y)).float().mean()
            for hash_ in (Hash(32, 32, seed=seed) for seed in range(20))
        ]
        drawn.append(round(float(torch.stack(same).mean()), 4))
    closed = [round(collision_probability(distance, 1.0), 4) for distance in DISTANCES]
    return {"distance": list(DISTANCES), "closed_form": closed, "drawn": drawn}


@torch.inference_mode()
def errors(core: Recording) -> dict[str, dict[str, float]]:
    """Return the mean squared error of the attention, and the share of clusters, by L and r."""
    found: dict[str, dict[str, float]] = {}
    for rounds in ROUNDS:
        for bucket in BUCKETS:
            wrong, shares = [], []
            for seed in range(SEEDS):
                act = ActAttention(core.seen[0][0].shape[-1], rounds, bucket=bucket, seed=seed)
                for q, k, v in core.seen:
                    exact = Attention().attend(q, k, v)
                    wrong.append(float((act.attend(q, k, v) - exact).square().mean()))
                shares.append(act.seen.share)
            found[f"L={rounds} r={bucket:g}"] = {
                "mse": float(np.mean(wrong)),
                "share": round(statistics.mean(shares), 4),
            }
    return found


@torch.inference_mode()
def prototypes(cores: list[Recording]) -> dict[str, list[list[float]]]:
    """Return clusters as a share of the tokens by L, in each layer, for each seed."""
    found: dict[str, list[list[float]]] = {}
    for rounds in ROUNDS:
        found[str(rounds)] = []
        for core in cores:
            hashes = [
                ActAttention(core.seen[0][0].shape[-1], rounds, seed=seed) for seed in range(SEEDS)
            ]
            for act in hashes:
                for q, k, v in core.seen:
                    act.attend(q, k, v)
            found[str(rounds)].append([round(act.seen.share, 4) for act in hashes])
    return found


@torch.inference_mode()
def paint(cores: list[Recording], network: Host, data: DetectionSet, path: Path) -> None:
    """Paint the clusters of the first head, layer by layer, beside the first image."""
    entry = data.records[0]
    image = read_image(entry.path, (entry.height, entry.width))
    assert image is not None
    size = network.architecture.input_size
    pixels = letterbox(image, size)[0]
    tiles = [pixels]
    for core in cores:
        q = core.seen[0][0]
        index, _ = cluster(Hash(q.shape[-1], 24).codes(q[0, :1]))
        colours = np.random.default_rng(0).integers(40, 255, (int(index.max()) + 1, 3))
        cells = colours[index[0].numpy()].reshape(*network.architecture.cells, 3).astype(np.uint8)
        large = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST)
        tiles.append(cv2.addWeighted(pixels, 0.45, large, 0.55, 0))
    cv2.imwrite(str(path), np.hstack(tiles)[:, :, ::-1])


def draw(result: dict[str, Any], folder: Path) -> None:
    """Draw the three curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    chance, error, share = figure.subplots(1, 3)
    rows = result["collisions"]
    chance.plot(rows["distance"], rows["closed_form"], label="closed form")
    chance.scatter(rows["distance"], rows["drawn"], color="tab:red", label="drawn")
    chance.set(xlabel="distance / width of a bucket", ylabel="chance of the same code")
    for rounds in ROUNDS:
        line = [result["errors"][f"L={rounds} r={bucket:g}"]["mse"] for bucket in BUCKETS]
        error.plot(BUCKETS, line, marker="o", label=f"L = {rounds}")
        layers = result["prototypes"][str(rounds)]
        places = range(1, len(layers) + 1)
        means = [statistics.mean(hashes) for hashes in layers]
        share.plot(places, means, marker="o", label=f"L = {rounds}")
        share.fill_between(places, list(map(min, layers)), list(map(max, layers)), alpha=0.15)
    error.set(xlabel="width of a bucket, r", ylabel="mean squared error, first layer", yscale="log")
    share.set(xlabel="layer of the encoder", ylabel="clusters / tokens", ylim=(0, 1))
    share.set_xticks(places)
    for axis in (chance, error, share):
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, folder / "curves.svg")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="workspace of a trained DETR")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--name")
    options = parser.parse_args()
    network, _, training, _ = load_network(Workspace(options.work))
    if not isinstance(network, Host):
        raise SystemExit(f"{options.work} holds a HeatDETR: a DETR is needed")
    data = load_split(options.data, "val")
    cores = record(network, data, options.images)
    height, width = network.architecture.cells
    result = {
        "network": network.architecture.name,
        "epochs": training and training["epochs"],
        "data": options.data.name,
        "tokens": height * width,
        "collisions": collisions(),
        "errors": errors(cores[0]),
        "prototypes": prototypes(cores),
        **here("torch", torch.get_num_threads(), network.architecture.input_size),
    }
    folder = RESULTS / "act-figures" / (options.name or "")
    if not options.name:
        folder = Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    draw(result, folder)
    paint(cores, network, data, options.work / "clusters.png")
    tell(result, folder / "figures.json")


if __name__ == "__main__":
    main()
