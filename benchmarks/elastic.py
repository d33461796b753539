"""One training for all frame rates against one training each: AP and time of five networks.

    python benchmarks/elastic.py --data DIR --work DIR --epochs 40 --seeds 2 --name bccd

Per seed a supernet is trained for --supernet-epochs, the chain of thinning found by multiply-adds,
and an elastic supernet trained for the rest of the epochs by `--recipe small`. Five networks of the
chain, spread evenly over its range of multiply-adds, are scored on val as they are inherited, after
a tenth of the epochs more, and trained from scratch with as many images seen as the supernet. With
--ablate only the inherited networks of other ways to train them are scored. Finished parts are
kept; interrupted ones go on, then without seconds. Frame rates are of one interleaved race in ONNX
Runtime, on one thread. The last line is one JSON object; with --name it goes to
benchmarks/results/elastic/, a figure beside it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastic_summary import summary
from figures import draw_elastic
from kept_runs import settings_of, timed
from result import RESULTS, here, tell

from deploy.gate import torch_detect
from deploy.side_by_side import Entrant, race
from heat.spaces import search_space
from heat.stages.inherited import images_for
from heat.thinning.moves import ThinningRules
from heat.thinning.nested import members_of, whole_chain
from latency_tables.models import randomise
from supernet.atomic import write_bytes
from supernet.counting import count_macs
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import found_rows, score_rows
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.elastic import Member
from supernet.heatdetr.inherit import inherit, order_channels
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.recalibrate import recalibrate
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.elastic_task import ElasticConfig, ElasticTask
from supernet.train.loop import fit, run_task
from supernet.train.recipes import SUPERNET, recipe
from supernet.train.running import Running

TARGETS = 5
FINETUNE_SHARE = 0.1
FINETUNE_RATE = 2e-4
RUNNING = Running(resume=True, workers=0)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train the networks together."""

    config: ElasticConfig = field(default_factory=ElasticConfig)
    anywhere: bool = False
    """Whether networks are random ones of the whole space instead of those of the chain."""


WAYS = {
    "elastic": Way(),
    "without sandwich": Way(ElasticConfig(sandwich=False)),
    "distillation from 60 % on": Way(ElasticConfig(teach_from=0.6)),
    "random networks of the space": Way(anywhere=True),
}


def score(network: Detector, val: DetectionSet) -> dict[str, float]:
    """Return AP and AP50 in points."""
    metrics = score_rows(found_rows(torch_detect(network.eval()), val, progress=False), val)
    return {"ap": round(100 * metrics.ap, 2), "ap50": round(100 * metrics.ap50, 2)}


def space_of(options: argparse.Namespace, num_classes: int) -> SearchSpace:
    """Return the space that is searched."""
    size = parse_size(options.input_size)
    return search_space(options.space, output_stride=16, input_size=size, num_classes=num_classes)


def random_members(space: SearchSpace, supernet: Supernet, count: int, seed: int) -> list[Member]:
    """Return the largest network, random ones of the space, and the smallest of the chain."""
    logits, rng = supernet.logits(), np.random.default_rng(seed)
    chain = whole_chain(space, logits, ThinningRules())
    states = [chain[0], chain[-1]]
    while len(states) < count:
        state = chain[0]
        for stage in (1, 2, 3, 4):
            state = state.narrower(stage, 32 * int(rng.integers(space.widths[stage - 1] // 32)))
            for place in state.live(stage):
                if len(state.live(stage)) > 1 and rng.random() < 0.5:
                    state = state.without(place)
                elif rng.random() < 0.5:
                    state = state.allowing(place, (int(rng.integers(3)),))
        states.append(state)
    return members_of(states, space, logits)


class Seed:
    """All that is trained with one seed; what is finished is loaded."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        """Load the data."""
        self.options, self.seed = options, seed
        self.size = parse_size(options.input_size)
        self.data = load_split(options.data, "train")
        self.val = load_split(options.data, "val")
        self.space = space_of(options, self.data.num_classes)
        self.work: Path = options.work / str(seed)
        self.work.mkdir(parents=True, exist_ok=True)
        settings = settings_of(options, "space", "input_size", "epochs", "supernet_epochs")
        self.timed = partial(timed, settings=settings)
        self.images = list(images_for(self.data, self.size, recipe("small").augment))
        self.trained: dict[str, Supernet] = {}

    def run(self, ways: Sequence[str], *, compare: bool) -> dict[str, Any]:
        """Train what is missing; return APs and seconds."""
        spent = self.timed(self.work / "supernet.json", self.train_supernet)
        members = self.members()
        targets = spread(members)
        found: dict[str, Any] = {
            "seed": self.seed,
            "networks": len(members),
            "supernet": spent,
            "targets": [target_facts(target) for target in targets],
        }
        for name in ways:
            trained = members
            if WAYS[name].anywhere:
                trained = random_members(self.space, self.supernet, len(members), self.seed)
            train = partial(self.train_elastic, name, trained)
            found[name] = self.timed(self.work / f"{name}.json", train)
            found[name]["inherited"] = [
                self.timed(
                    self.work / f"{name} {index}.json",
                    partial(self.score_inherited, name, trained, target),
                )
                for index, target in enumerate(targets)
            ]
        if compare:
            for what, train_one in (("finetuned", self.finetune), ("scratch", self.scratch)):
                found[what] = []
                for index, target in enumerate(targets):
                    folder = self.work / f"{what}-{index}"
                    one = partial(train_one, target, members, folder)
                    found[what].append(self.timed(folder.with_suffix(".json"), one))
        return found

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet, trained as `heat supernet` does."""
        torch.manual_seed(self.seed)
        network = Supernet(self.space, SearchConfig(straight_through=True))
        config = replace(SUPERNET, epochs=self.options.supernet_epochs, seed=self.seed)
        fit(network, self.data, config, self.work / "supernet", RUNNING)
        return network

    def members(self) -> list[Member]:
        """Return the networks of the supernet's chain, the largest first."""
        logits = self.supernet.logits()
        chain = whole_chain(self.space, logits, ThinningRules())
        return members_of(chain, self.space, logits)

    def train_supernet(self) -> dict[str, Any]:
        """Train the supernet."""
        return {"positions": self.supernet.space.positions}

    def elastic(self, name: str, members: Sequence[Member]) -> Supernet:
        """Train an elastic supernet in one of the ways, or load it."""
        if name in self.trained:
            return self.trained[name]
        epochs = self.options.epochs - self.options.supernet_epochs
        config = recipe("small", epochs=epochs, seed=self.seed)
        largest = members[0]
        network = order_channels(self.supernet, largest.architecture, largest.positions)
        torch.manual_seed(self.seed)
        asked = [] if WAYS[name].anywhere else spread(members)
        task = ElasticTask(network, self.data, members, WAYS[name].config, asked=asked)
        run_task(task, config, self.work / name.replace(" ", "-"), RUNNING)
        self.trained[name] = network.eval()
        return network

    def train_elastic(self, name: str, members: Sequence[Member]) -> dict[str, Any]:
        """Train an elastic supernet."""
        self.elastic(name, members)
        return {"members": len(members)}

    def inherited(self, name: str, members: Sequence[Member], target: Member) -> Detector:
        """Return a network with weights, its BatchNorm recalibrated."""
        network = inherit(self.elastic(name, members), target.architecture, target.positions)
        recalibrate(network, self.images)
        return network

    def score_inherited(
        self, name: str, members: Sequence[Member], target: Member
    ) -> dict[str, Any]:
        """Score a network as it is inherited."""
        return score(self.inherited(name, members, target), self.val)

    def finetune(self, target: Member, members: Sequence[Member], folder: Path) -> dict[str, Any]:
        """Train an inherited network for a tenth of the epochs, and score it."""
        network = self.inherited("elastic", members, target)
        epochs = max(1, round(FINETUNE_SHARE * self.options.epochs))
        config = recipe("small", epochs=epochs, seed=self.seed, learning_rate=FINETUNE_RATE)
        fit(network, self.data, config, folder, RUNNING)
        return {"epochs": epochs, **score(network, self.val)}

    def scratch(self, target: Member, members: Sequence[Member], folder: Path) -> dict[str, Any]:
        """Train a network from scratch for all epochs, and score it."""
        torch.manual_seed(self.seed)
        network = Detector(target.architecture)
        epochs = self.options.epochs
        fit(network, self.data, recipe("small", epochs=epochs, seed=self.seed), folder, RUNNING)
        return {"epochs": epochs, **score(network, self.val)}


def spread(members: Sequence[Member]) -> list[Member]:
    """Return networks of the chain, evenly over the logarithm of their multiply-adds."""
    macs = np.log([count_macs(member.architecture).total for member in members])
    wanted = np.linspace(macs[0], macs[-1], TARGETS)
    return [members[int(np.abs(macs - value).argmin())] for value in wanted]


def target_facts(member: Member) -> dict[str, Any]:
    """Return what a network is."""
    architecture = member.architecture
    return {
        "widths": architecture.widths,
        "blocks": architecture.blocks,
        "gmacs": round(count_macs(architecture).total / 1e9, 3),
    }


def race_of(runs: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[list[float]]:
    """Return the frame rates of every seed's networks, of one race."""
    space = space_of(options, load_split(options.data, "val").num_classes)
    entrants = []
    for run in runs:
        for index, target in enumerate(run["targets"]):
            path = options.work / f"{run['seed']}-{index}.onnx"
            architecture = space.template.with_(
                name="thinned", widths=tuple(target["widths"]), blocks=tuple(target["blocks"])
            )
            network = Detector(architecture).eval()
            randomise(network)
            write_bytes(path, network.to_onnx(raw=True).SerializeToString())
            entrants.append(Entrant(name=path.stem, model=path, runtime="onnxruntime"))
    laps = {lap.name: round(1000 / lap.p50_ms, 1) for lap in race(entrants, rounds=options.rounds)}
    return [[laps[f"{run['seed']}-{i}"] for i in range(len(run["targets"]))] for run in runs]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what `Seed` needs, and of the number of seeds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="trained networks are kept here")
    parser.add_argument("--space", default="micro")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--supernet-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--name")
    return parser


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--ablate", action="store_true", help="other ways to train; inherited only")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ways = list(WAYS) if options.ablate else ["elastic"]
    runs = [
        Seed(options, seed).run(ways, compare=not options.ablate) for seed in range(options.seeds)
    ]
    result = {
        "data": options.data.name,
        "space": options.space,
        "epochs": options.epochs,
        "supernet_epochs": options.supernet_epochs,
        "seeds": runs,
        "torch": torch.__version__,
    }
    if not options.ablate:
        fps = race_of(runs, options)
        result |= summary(runs, fps) | here("onnxruntime", 1, parse_size(options.input_size))
    path = RESULTS / "elastic" / f"{options.name}.json" if options.name else None
    tell(result, path)
    if path is not None and not options.ablate:
        title = f"{options.data.name} at {options.input_size}, {options.epochs} epochs"
        draw_elastic(result["targets"], title, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
