"""What statistics of BatchNorm are worth: of plain images, and of images as training shows them.

    python benchmarks/recalibration.py --data DIR --work DIR --seeds 2 --name recalibration-bccd

Scores the networks that `elastic.py` left in --work (run with the same options): inherited ones
with statistics of plain and of augmented training images, and trained ones with their own
statistics, the averages of training, beside those two. AP on val. The last line is one JSON object;
with --name it goes to benchmarks/results/elastic/.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from elastic import Seed, parser_of, score, spread
from result import RESULTS, tell
from torch import Tensor

from heat.thinning.evaluation import load_batches
from supernet.checkpoint import load_weights
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.elastic import Member
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.recalibrate import recalibrate

PLAIN = 64
WAYS = ("own", "plain", "as in training")
"""Whose statistics a network has: the averages of its training, or of images."""


def networks(seed: Seed, members: Sequence[Member], target: int) -> dict[str, Detector]:
    """Return a target's network as it is inherited, fine-tuned, and trained from scratch."""
    member = spread(members)[target]
    supernet = seed.elastic("elastic", members)
    found = {"inherited": inherit(supernet, member.architecture, member.positions)}
    for name in ("finetuned", "scratch"):
        path = seed.work / f"{name}-{target}" / "weights.safetensors"
        if path.exists():
            found[name] = Detector(member.architecture)
            load_weights(path, found[name])
    return found


def scores(seed: Seed, targets: Sequence[int]) -> list[dict[str, Any]]:
    """Return the APs of some targets' networks by their statistics."""
    members = seed.members()
    plain = [pixels for pixels, _ in load_batches(seed.data.records[:PLAIN], seed.size)]
    ways: dict[str, list[Tensor]] = {"plain": plain, "as in training": seed.images}
    rows = []
    for target in targets:
        for name, network in networks(seed, members, target).items():
            row: dict[str, Any] = {"seed": seed.seed, "target": target, "network": name}
            if name != "inherited":
                row["own"] = score(network, seed.val)["ap"]
            for way, images in ways.items():
                recalibrate(network, images)
                row[way] = score(network, seed.val)["ap"]
            rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--targets", default="0,2,4", help="of five, the largest first")
    options = parser.parse_args()
    targets = [int(target) for target in options.targets.split(",")]
    rows = [
        row for number in range(options.seeds) for row in scores(Seed(options, number), targets)
    ]
    means: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        ways = [way for way in WAYS if way in mine[0]]
        means[name] = {way: round(statistics.mean(row[way] for row in mine), 2) for way in ways}
    result = {
        "data": options.data.name,
        "input_size": options.input_size,
        "plain_images": PLAIN,
        "means": means,
        "networks": rows,
    }
    tell(result, RESULTS / "elastic" / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
