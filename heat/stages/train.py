"""`heat train`: train the thinned architecture, from scratch or from the supernet's weights."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from deploy.gate import torch_detect
from deploy.teachers.asked import Asked
from supernet.checkpoint import WEIGHTS, file_digest, load_weights, read_info, weights_file
from supernet.data.average_precision import known
from supernet.data.detection_set import DetectionSet, check_trainable
from supernet.data.evaluate import evaluate
from supernet.data.scoring_memory import warn_of_memory
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.inherit import inherit
from supernet.network import AnyArchitecture, Network, build
from supernet.train.distributed import first_process
from supernet.train.early_stop import best_epoch
from supernet.train.loop import run_task
from supernet.train.mtkd import act_cores
from supernet.train.pretraining import load_backbone
from supernet.train.recipes import TrainConfig
from supernet.train.run_files import BEST, STATE
from supernet.train.running import Judge, Running, TrainResult
from supernet.train.task import MtkdTask, Task, task_of
from supernet.train.transfer import Taken, read_source, take_weights
from supernet.train.unlabelled_task import UnlabelledTask

from ..records import Result
from ..thinning.source import load_supernet
from ..thinning.thinned import need_thinned
from ..views.first_batches import draw_batches
from ..workspace import Workspace
from .inherited import inherited_of
from .lesson import lesson_of, with_unlabelled
from .training_record import record_training


def train(
    workspace: Workspace,
    data: DetectionSet,
    architecture: AnyArchitecture,
    config: TrainConfig,
    *,
    from_supernet: bool = False,
    backbone: Path | None = None,
    weights: Path | None = None,
    students: int | None = None,
    teacher: Asked | None = None,
    unlabelled: Path | None = None,
    running: Running | None = None,
) -> Result:
    """Train a detector; class count and names come from the data.

    It starts from the supernet's weights, from a pretrained backbone, from what fits of another
    network's `weights` (a file, or a workspace), or from scratch. `students` are the hash functions
    of ACT that MTKD teaches a trained DETR. Of a `teacher` it learns beside the labels. On
    `unlabelled` images it learns what the teacher finds, or its own averaged weights without one.
    """
    if teacher is None:
        check_trainable(data)
    if students is not None and (teacher is not None or unlabelled is not None):
        raise UserError(
            "--recipe mtkd has the network itself as its teacher: leave --teacher and --unlabelled "
            "out"
        )
    architecture = architecture.with_(num_classes=data.num_classes)
    torch.manual_seed(config.seed)
    start: dict[str, str] = {}
    network: Network
    if from_supernet:
        network = _inherited(workspace, architecture, data.names, start)
    else:
        network = build(architecture)
    loaded = start_from(backbone, network, start)
    taken = None if weights is None else _take(weights, workspace, network, data.names, start)
    network.set_drop_path(config.drop_path)
    task: Task
    lesson = None
    if teacher is not None:
        restart = running is not None and running.restart
        lesson = lesson_of(
            teacher, network, data, workspace.train, unlabelled=unlabelled, restart=restart
        )
        task, data = lesson.task, lesson.data
        start["teacher"] = lesson.digest
        check_trainable(data)
    elif students is not None:
        task = _distill(network, data, students, taken)
    elif unlabelled is not None:
        task = UnlabelledTask(network, data, with_unlabelled(data, unlabelled))
    else:
        task = task_of(network, data)
    with workspace.training(workspace.train):
        begins = not (workspace.train / STATE).exists() or (running is not None and running.restart)
        if begins and first_process():
            first = workspace.train / "first-batches.jpg"
            draw_batches(data, architecture.input_size, config, first)
        done = run_task(task, config, workspace.train, running, start=start)
    if isinstance(task, UnlabelledTask) and done.leads:
        task.warn_of_nothing_learnt()

    def facts() -> Result:
        return {
            "images": len(data.records),
            "unlabelled": len(task.others) if isinstance(task, UnlabelledTask) else None,
            "data": str(data.root),
            "inherited": from_supernet,
            "backbone": loaded,
            "weights": taken.facts() if taken is not None else None,
            "teacher": lesson.facts if lesson is not None else None,
            **(_best(done, workspace.train) if done.leads else {}),
        }

    return record_training(workspace, "train", workspace.train, done, facts)


def _best(done: TrainResult, folder: Path) -> Result:
    """Return the epoch of the highest AP, where AP was computed."""
    history = read_info(done.checkpoint).history
    best = best_epoch(history)
    if best is None:
        return {}
    ap = next(row["ap"] for row in history if row["epoch"] == best)
    return {"best": {"epoch": best, "ap": ap, "checkpoint": str(folder / BEST)}}


def _take(
    path: Path,
    workspace: Workspace,
    network: Network,
    names: Sequence[str],
    start: dict[str, str],
) -> Taken:
    """Take what fits of another network's weights, and report it; note their digest in `start`."""
    file = weights_file(path)
    if file.resolve().parent == workspace.train.resolve():
        raise UserError(f"--weights {path}: training replaces {file}, give another --out")
    start["weights"] = file_digest(file)
    taken = take_weights(read_source(file), network, names)
    if first_process():
        print(f"weights of {file}: {taken}", file=sys.stderr)
    return taken


def _distill(network: Network, data: DetectionSet, rounds: int, taken: Taken | None) -> MtkdTask:
    """Return the task of distilling a trained DETR by MTKD, for ACT of `rounds` hash functions."""
    if network.detr is None:
        raise UserError(f"--recipe mtkd is for DETR, not for {network.architecture.name}")
    if network.detr.architecture.levels > 1:
        raise UserError("--recipe mtkd: deformable attention has no ACT; one level is needed")
    if taken is None:
        raise UserError("--recipe mtkd teaches a trained network: give its --weights")
    if not taken.complete:
        raise UserError(
            f"--recipe mtkd teaches a trained network, --weights is of another: {taken}"
        )
    return MtkdTask(network.detr, data, act_cores(network.detr, rounds))


def start_from(backbone: Path | None, network: Network, start: dict[str, str]) -> Result | None:
    """Load a pretrained backbone, print how much of it fits, and return what fits and what not.

    Its digest is noted in `start`.
    """
    if backbone is None:
        return None
    if network.heatdetr is None:
        raise UserError(
            f"--backbone is what heat pretrain made of a HeatDETR: {network.architecture.name} has "
            "a ResNet (heat adopt takes published weights)"
        )
    loaded = load_backbone(backbone, network.heatdetr)
    start["backbone"] = file_digest(backbone)
    if first_process():
        print(f"backbone {backbone}: {loaded}", file=sys.stderr)
    return loaded.facts()


def numbered_as_inherited(workspace: Workspace, data: DetectionSet) -> DetectionSet:
    """Return data with its classes numbered as those of the weights that are inherited.

    As they are where there are no such weights.
    """
    if not workspace.architecture.exists():
        return data
    path = _inherited_from(workspace, Architecture.load(workspace.architecture))
    return data.numbered_as(read_info(path).names) if path.exists() else data


def _inherited_from(workspace: Workspace, thin: Architecture) -> Path:
    """Return the weights that a thinned network inherits: its own, or else the supernet's."""
    return inherited_of(workspace, thin) or workspace.supernet / WEIGHTS


def _inherited(
    workspace: Workspace,
    architecture: AnyArchitecture,
    names: Sequence[str],
    start: dict[str, str],
) -> Detector:
    """Return the thinned network with the supernet's weights; note their digest in `start`.

    The data's class `names` are to be in the order of the supernet's.
    """
    thinned = need_thinned(workspace)
    thin = Architecture.load(workspace.architecture)
    if thin != architecture:
        raise UserError("--inherit needs the thinned architecture: run heat thin again")
    path = _inherited_from(workspace, thin)
    if not path.exists():
        raise UserError("--inherit needs a trained supernet: run heat supernet first")
    if read_info(path).names != tuple(names):
        raise UserError(
            f"the classes of {path} are others, or in another order, than those of the data: "
            "heat supernet --restart"
        )
    start["supernet"] = file_digest(path)
    if path == workspace.inherited:
        network = Detector(thin)
        load_weights(path, network)
        return network
    supernet = load_supernet(workspace)
    assert supernet is not None, "its file is there"
    return inherit(supernet, thin, thinned.positions)


def judge_on(data: DetectionSet) -> Judge:
    """Return what scores a network on a split while it is trained; warn now of its memory.

    AP that is none is left out.
    """
    if first_process():
        warn_of_memory(data)

    def judge(network: Network) -> dict[str, float]:
        metrics = evaluate(torch_detect(network), data, progress=False)
        found = {"ap": known(metrics.ap), "ap50": known(metrics.ap50)}
        return {name: share for name, share in found.items() if share is not None}

    return judge
