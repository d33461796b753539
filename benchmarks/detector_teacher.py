"""What a small network learns from a larger one, and from its labels of images without any.

    python benchmarks/detector_teacher.py distil --data DIR --work DIR --name bccd \
        --teacher-epochs 35 --epochs 12 --seeds 0,1
    python benchmarks/detector_teacher.py halves --data DIR --work DIR --name halves-aquarium \
        --epochs 36 --seeds 0,1
    python benchmarks/detector_teacher.py labels --data DIR --work DIR --name labels-bccd \
        --teacher-epochs 35
    heat build --data DIR --target-fps 100 --minutes 5 --out WORK/build
    python benchmarks/detector_teacher.py supernet --data DIR --work WORK --name supernet-shapes \
        --epochs 12 --seeds 0,1

`distil` trains a teacher (heat-m of `frontier.py`) with `heat train`, and students (heat-xs) with
and without --teacher. `halves` hides the labels of every second training image: a network is
trained on half of the labels, teaches one like it that is given the other images without labels
(--unlabelled), labels them for another (`heat label`), and the last one has all labels. As `heat
label` takes its thresholds from val, all are scored on the test split; a set without one is scored
on val, which favours the labelled network, and the result has it as `scored_on`. `labels`
compares what `heat label --score auto` by the teacher writes for the test split with that split's
labels, at IoU 0.5. `supernet` trains the network that a build has thinned from the weights of its
supernet, with and without the supernet as its teacher, and scores the supernet itself. All
trainings are `--recipe small` and go on where they were interrupted; AP is that after the last
epoch, on val but for `halves`. Seeds and epochs are in the result, the last line, which with --name
goes to benchmarks/results/detector-teacher-NAME.json.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from commands import heat
from frontier import OURS, architecture_of
from result import RESULTS, memory_mb, tell
from subset import write_joined, write_subset

from deploy.gate import torch_detect
from deploy.teachers.detector import load_teacher
from heat.workspace import Workspace
from supernet.checkpoint import read_info
from supernet.data.coco import find_split, load_split
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import evaluate
from supernet.data.true_positives import hits_by_class
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.input_size import parse_size


def train(
    options: argparse.Namespace,
    name: str,
    out: str,
    *more: object,
    epochs: int,
    seed: int,
    data: Path | None = None,
) -> dict[str, Any]:
    """Train one of `frontier.py`'s networks, or continue it; return its AP and how it was made."""
    architecture = options.work / f"{name}.json"
    size = parse_size(options.input_size)
    architecture_of(name, size).save(architecture)
    folder = options.work / out
    heat(
        "train", "--data", data or options.data, "--architecture", architecture,
        "--recipe", "small", "--epochs", epochs, "--batch-size", 8, "--eval-every", 10,
        "--workers", options.workers, "--seed", seed, "--resume", "--out", folder, *more,
        *options.train,
    )  # fmt: skip
    stage: dict[str, Any] = dict(Workspace(folder).stages()["train"])
    last = read_info(folder / "train" / "weights.safetensors").history[-1]
    facts = {
        "network": name,
        "epochs": stage["epochs"],
        "seed": seed,
        "images": stage["images"],
        "seconds": stage["seconds"],
        "memory_mb": memory_mb(folder / "train"),
        "ap": round(last["ap"], 4),
        "ap50": round(last["ap50"], 4),
    }
    if stage.get("teacher") is not None:
        kept = ("learnt", "boxes", "unlabelled")
        facts["taught"] = {key: stage["teacher"][key] for key in kept if key in stage["teacher"]}
    return facts


def distil(options: argparse.Namespace) -> dict[str, Any]:
    """Return the teacher, and students of each seed with and without it."""
    teacher = train(options, options.teacher, "teacher", epochs=options.teacher_epochs, seed=0)
    arms: dict[str, list[dict[str, Any]]] = {"plain": [], "distilled": []}
    for seed in options.seeds:
        for arm, runs in arms.items():
            more = ["--teacher", options.work / "teacher"] if arm == "distilled" else []
            runs.append(
                train(
                    options, options.student, f"{arm}-{seed}", *more,
                    epochs=options.epochs, seed=seed,
                )
            )  # fmt: skip
    return {"teacher": teacher, **arms}


def labels(options: argparse.Namespace) -> dict[str, Any]:
    """Return precision and recall of a teacher's labels of the test split."""
    teacher = train(options, options.teacher, "teacher", epochs=options.teacher_epochs, seed=0)
    out, truth = options.work / "labelled", load_split(options.data, "test")
    heat(
        "label", options.data / "test", "--teacher", options.work / "teacher",
        "--data", options.data, "--out", out,
    )  # fmt: skip
    file = json.loads((out / "annotations" / "instances_train.json").read_text())
    ids = {record.path.name: record.image_id for record in truth.records}
    image_of = {image["id"]: ids[image["file_name"]] for image in file["images"]}
    rows: list[ResultRow] = [
        {
            "image_id": image_of[each["image_id"]],
            "category_id": truth.category_ids[each["category_id"] - 1],
            "bbox": each["bbox"],
            "score": each["score"],
        }
        for each in file["annotations"]
    ]
    hits = hits_by_class(rows, truth)
    classes = {
        name: {
            "objects": each.objects,
            "labels": len(each.right),
            "threshold": file["info"]["thresholds"][name],
            "precision": round(float(each.right.mean()), 4) if len(each.right) else None,
            "recall": round(float(each.right.sum()) / max(1, each.objects), 4),
        }
        for name, each in zip(truth.names, hits, strict=True)
    }
    uncertain = (out / "uncertain.csv").read_text().count("\n") - 1
    thresholds = file["info"]["thresholds_are"]
    return {
        "teacher": teacher, "classes": classes, "uncertain": uncertain, "thresholds": thresholds
    }  # fmt: skip


def halves(options: argparse.Namespace) -> dict[str, Any]:
    """Return networks trained on half of the labels, half and the rest's boxes, and all labels."""
    half, rest = split(load_split(options.data, "train"), options.data, options.work)
    judged = "test" if find_split(options.data, "test") else "val"
    names = ("half", "half and unlabelled", "half and heat label", "all")
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def run(out: str, data: Path, *more: object, seed: int) -> dict[str, Any]:
        found = train(
            options, options.student, out, *more, data=data, epochs=options.epochs, seed=seed
        )
        return found | scored(options.work / out / "train", options.data, judged)

    for seed in options.seeds:
        arms["half"].append(run(f"half-{seed}", half, seed=seed))
        teacher = options.work / f"half-{seed}"
        more = ["--teacher", teacher, "--unlabelled", rest]
        arms["half and unlabelled"].append(run(f"unlabelled-{seed}", half, *more, seed=seed))
        labelled, joined = options.work / f"label-{seed}", options.work / f"joined-{seed}"
        heat("label", rest, "--teacher", teacher, "--data", half, "--out", labelled)
        write_joined(half, labelled, joined)
        arms["half and heat label"].append(run(f"labelled-{seed}", joined, seed=seed))
        arms["all"].append(run(f"all-{seed}", options.data, seed=seed))
    return {"scored_on": judged, **arms}


def supernet(options: argparse.Namespace) -> dict[str, Any]:
    """Return the supernet of a build, and its thinned network with and without it as teacher."""
    build = options.work / "build"
    arms: dict[str, list[dict[str, Any]]] = {"plain": [], "distilled": []}
    for seed in options.seeds:
        for arm, runs in arms.items():
            out = options.work / f"supernet-{arm}-{seed}"
            if not out.exists():
                shutil.copytree(build, out, ignore=shutil.ignore_patterns("train", "export*"))
            more = ["--teacher", build / "supernet"] if arm == "distilled" else []
            heat(
                "train", "--data", options.data, "--inherit", "--recipe", "small",
                "--epochs", options.epochs, "--batch-size", 8, "--eval-every", 0,
                "--workers", options.workers, "--seed", seed, "--resume", "--out", out, *more,
                *options.train,
            )  # fmt: skip
            runs.append({"seed": seed, **scored(out / "train", options.data)})
    height, width = Architecture.load(build / "thin" / "architecture.json").input_size
    size = {"input_size": f"{height}x{width}"}
    return {**size, "supernet": scored(build / "supernet", options.data), **arms}


def scored(path: Path, data: Path, split: str = "val") -> dict[str, Any]:
    """Return the AP of a trained network on a split, and its epochs."""
    network, names, _ = load_teacher(path)
    metrics = evaluate(torch_detect(network), load_split(data, split).numbered_as(names))
    epochs = read_info(path / "weights.safetensors").epoch
    return {"epochs": epochs, "ap": round(metrics.ap, 4), "ap50": round(metrics.ap50, 4)}


def split(data: DetectionSet, root: Path, work: Path) -> tuple[Path, Path]:
    """Write a set of every second training image, with the same val, and the others' images."""
    places = range(len(data.records))
    half, rest = write_subset(data, root, places[::2], work / "half"), work / "rest"
    rest.mkdir(parents=True, exist_ok=True)
    for place in places[1::2]:
        shutil.copy2(data.records[place].path, rest)
    return half, rest


DOING = {"distil": distil, "halves": halves, "labels": labels, "supernet": supernet}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=DOING)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="trained networks are kept here")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--teacher", default="heat-m", choices=OURS)
    parser.add_argument("--student", default="heat-xs", choices=OURS)
    parser.add_argument("--teacher-epochs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--name")
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], help="last: more options of heat train"
    )
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.work.mkdir(parents=True, exist_ok=True)
    found = DOING[options.what](options)
    means = {
        arm: round(sum(run["ap"] for run in runs) / len(runs), 4)
        for arm, runs in found.items()
        if isinstance(runs, list)
    }
    result = {
        "data": options.data.name,
        "input_size": options.input_size,
        "what": options.what,
        "train_options": [Path(part).name for part in options.train],
        **({"mean_ap": means} if means else {}),
        **found,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    tell(result, RESULTS / f"detector-teacher-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
