"""Hashes that a refactoring must not change: of graphs, latencies, a training, a ledger.

    PYTHONPATH=. python benchmarks/unchanged.py > before.json
    ... move, rename, split ...
    PYTHONPATH=. python benchmarks/unchanged.py --compare before.json

Graphs: every preset, block and deploy format, with the weights of a seed. Prices: the shipped
tables' predictions for random networks, and the files of those tables written again. Training: a
short supernet and a short training that inherits from it, seeded, one thread. Ledger: a thinning
for an estimated device, without measurements. All but the graphs run as commands. The last line is
one JSON object; with --compare the exit code is 1 if a hash differs, and those are listed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heat.spaces import search_space
from latency_tables.models import randomise
from latency_tables.networks import random_architecture
from latency_tables.pricing import Pricing
from latency_tables.store import SHIPPED
from latency_tables.table_file import read_table, write_table
from supernet.detr.family import FAMILY
from supernet.graph.style import GraphStyle, Uncalibrated
from supernet.heatdetr.architecture import PRESETS
from supernet.network import build

SIZE = (128, 192)
NETWORKS = 20
FORMS: dict[str, dict[str, Any]] = {
    "onnx-f32": {"style": GraphStyle(channels_last=True)},
    "onnx-raw": {"raw": True},
    "onnx-int8": {"style": GraphStyle(precision="int8")},
    "openvino-int8": {"style": GraphStyle(precision="int8", ranges=Uncalibrated(outputs=True))},
    "tensorrt-f16": {"style": GraphStyle(precision="f16", scatter_add=False), "padded": True},
    "batch": {"batch": 2, "padded": True},
}
"""Options of `to_onnx` by deploy format; only the first two apply to the DETR family."""
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"nano-{kind}": {"global_block": kind} for kind in ("oa", "act", "enact", "pool")},
    "nano-sparse": {"global_block": "oa", "token_sparsity": 0.1},
    "nano-16": {"output_stride": 16},
    "nano-one-to-one": {"head": "one-to-one"},
    "nano-distributions": {"boxes": "distributions"},
}


def digest(content: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def graphs() -> Iterator[tuple[str, str]]:
    """Hash the ONNX file of every network in every deploy format."""
    networks: dict[str, Any] = {name: p.with_(input_size=SIZE) for name, p in PRESETS.items()}
    networks |= {
        name: PRESETS["nano"].with_(input_size=SIZE, **changes)
        for name, changes in VARIANTS.items()
    }
    networks |= {name: p.with_(input_size=SIZE) for name, p in FAMILY.items()}
    for name, architecture in networks.items():
        torch.manual_seed(0)
        network = build(architecture)
        randomise(network)
        network.eval()
        forms = FORMS if name not in FAMILY else list(FORMS)[:2]
        for form in forms:
            model = network.to_onnx(**FORMS[form])
            yield f"graph {name} {form}", digest(model.SerializeToString(deterministic=True))


def prices(folder: Path) -> Iterator[tuple[str, str]]:
    """Hash the shipped tables' predictions, and their files."""
    for path in sorted(SHIPPED.glob("*.csv")):
        table = read_table(path)
        space = search_space("large", input_size=table.conditions.input_size, num_classes=80)
        rng = np.random.default_rng(0)
        found = []
        for _ in range(NETWORKS):
            network = random_architecture(rng, space.template, space.widths, space.positions)
            if table.model is None:
                found.append(repr(table.predict_ms(network)))
            else:
                found.append(repr(Pricing(table).latency(network)))
        yield f"prices {path.stem}", digest("\n".join(found).encode())
        write_table(table, folder)
        for kept in sorted(folder.glob(f"{path.stem}.*")):
            yield f"file {kept.name}", digest(kept.read_bytes())


def commands(folder: Path) -> Iterator[tuple[str, str]]:
    """Hash the files of a short supernet, a thinning for an estimated device and a training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def heat(*arguments: str) -> None:
        command = [sys.executable, "-m", "heat", *arguments]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    data, run = str(folder / "shapes"), folder / "run"
    size = ("--space", "micro", "--input-size", "96x128")
    short = ("--epochs", "2", "--batch-size", "4", "--out", str(run))
    heat("data", "shapes", data, "--train", "12", "--val", "4")
    heat("supernet", "--data", data, *size, *short)
    heat("profile", "--device", "v100", "--estimate", "--data", data, *size, "--out", str(run))
    heat("thin", "--target-fps", "1", "--trust-table", "--frontier", "--out", str(run))
    heat("train", "--data", data, "--inherit", *short)
    for name in ("supernet", "train"):
        for path in sorted((run / name).glob("*.safetensors")):
            yield f"weights {name} {path.name}", _weights(path)
    for name in ("thinning.csv", "frontier.csv", "architecture.json"):
        yield f"thinning {name}", digest((run / "thin" / name).read_bytes())


def _weights(path: Path) -> str:
    """Hash the tensors of a file by name; its header also holds the time it was written."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    parts = [name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)]
    return digest(b"".join(parts))


def main() -> None:
    """Print the hashes, or compare them with earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", type=Path, help="what was printed before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = dict(graphs())
    with tempfile.TemporaryDirectory() as folder:
        found |= dict(prices(Path(folder)))
        found |= dict(commands(Path(folder)))
    if options.compare is not None:
        before = json.loads(options.compare.read_text(encoding="utf-8").splitlines()[-1])
        different = [name for name in {**before, **found} if before.get(name) != found.get(name)]
        for name in different:
            print(f"{name}: {before.get(name)} before, {found.get(name)} now", file=sys.stderr)
        print(json.dumps({"compared": len(found), "different": different}))
        sys.exit(1 if different else 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
