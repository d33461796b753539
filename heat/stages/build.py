"""`heat build`: the whole chain, going on where it was interrupted."""

import json
import math
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from deploy.form import RUNTIME_OF, Format, refuse_gpu
from deploy.teachers.asked import Asked as Teacher
from latency_tables.devices import Target
from latency_tables.probe.machine import physical_cores
from supernet.checkpoint import WEIGHTS, read_info
from supernet.data.detection_set import DetectionSet
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture, BoxKind, HeadKind
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.progress import begin, stages
from supernet.train.deadline import Budget
from supernet.train.recipes import SUPERNET, recipe
from supernet.train.run_files import STATE, forget
from supernet.train.running import Running

from ..records import Asked, BuildPlan, Result
from ..spaces import SPACES, search_space
from ..thinning.again import part_of
from ..thinning.candidates import Candidate
from ..thinning.ceiling import refuse_impossible
from ..thinning.limits import Limits
from ..thinning.proxies import ApDropBy
from ..thinning.thinned import need_thinned
from ..workspace import Workspace
from .build_done import is_profiled, is_thinned
from .build_plan import (
    SUPERNET_EPOCHS,
    SUPERNET_SHARE,
    TRAIN_EPOCHS,
    choose_input_size,
    choose_space,
    epochs_for,
    left_to_train,
    step_seconds,
    training_budgets,
)
from .evaluate import evaluate_bundle
from .export import Wish, export
from .profile import profile
from .supernet import search_of, train_supernet
from .thin import thin
from .train import train

PROXY_MINUTES = 20.0
"""Shorter builds score moves by importance mass: the check of the other proxies takes minutes."""
SHORT_RUN_LOGIT_RATE = 1e-2
"""Step of the selection logits in builds: ten times the default, for runs of few steps."""


@stages("plan", "profile", "supernet", "thin", "train", "export", "eval", "report")
@part_of("heat build")
def build(
    workspace: Workspace,
    target: Target,
    target_fps: float,
    data: DetectionSet,
    val: DetectionSet,
    *,
    minutes: float,
    format: Format,
    space: str | None,
    input_size: tuple[int, int] | None,
    output_stride: int,
    head: HeadKind,
    boxes: BoxKind,
    distil: bool,
    calibrate: bool,
    seed: int,
    backbone: Path | None = None,
    restart: bool = False,
) -> Result:
    """Plan, profile, train the supernet, thin, train, export, evaluate; skip finished stages.

    The supernet starts from a pretrained `backbone`. With `restart` nothing but the latency table
    counts as finished.
    """
    limits = Limits(target_fps=target_fps)
    plain = replace(SUPERNET, seed=seed)  # refused now, not after the profile
    if not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"--minutes {minutes:g}: a positive number")
    refuse_gpu(format, target.device.kind)
    if RUNTIME_OF[format] != target.runtime:
        raise UserError(
            f"--format {format} runs on {RUNTIME_OF[format]}, the table would be of "
            f"{target.runtime}: give --runtime {RUNTIME_OF[format]}"
        )
    started = time.monotonic()
    size = input_size or choose_input_size(data.records)
    spaces = [
        search_space(name, input_size=size, num_classes=data.num_classes, head=head, boxes=boxes)
        for name in ([space] if space is not None else SPACES)
    ]
    refuse_impossible([Candidate(named, (target,), (limits,)) for named in spaces])
    asked: Asked = {
        "data": str(data.root.absolute()),
        "target_fps": target_fps,
        "device": target.name,
        "runtime": target.runtime,
        "threads": target.threads,
        "precision": target.precision,
        "minutes": minutes,
        "asked_space": space,
        "asked_size": list(input_size) if input_size else None,
        "output_stride": output_stride,
        "head": head,
        "boxes": boxes,
    }
    with workspace.claimed(workspace.root / "build", f"building in {workspace.root}"):
        if restart:
            _forget(workspace)
        plan = _plan(workspace, target, data, asked)
        chosen = SearchSpace.from_dict(plan["space"], "run.json")
        begin("profile")
        if not is_profiled(workspace, chosen, target):
            profile(workspace, target, chosen)
        begin("supernet")
        epochs = _supernet_epochs(workspace, plan, chosen, data, time.monotonic() - started)
        config = replace(plain, epochs=epochs)
        usual = SearchConfig(logit_learning_rate=SHORT_RUN_LOGIT_RATE)
        search = usual if restart else search_of(workspace, usual)
        running = Running(resume=True, threads=physical_cores())
        seconds, _ = training_budgets(minutes, time.monotonic() - started)
        budget = Budget(seconds, fewest_epochs=SUPERNET_EPOCHS[0])
        train_supernet(
            workspace, data, chosen, config, search,
            backbone=backbone, running=replace(running, budget=budget),
        )  # fmt: skip
        begin("thin")
        if not is_thinned(workspace, chosen, target, limits, format):
            ap_drop: ApDropBy = "auto" if minutes >= PROXY_MINUTES else "mass"
            thin(workspace, [Candidate(chosen, (target,), (limits,))], data=data, ap_drop=ap_drop)
        begin("train")
        architecture = Architecture.load(workspace.architecture)
        epochs = _train_epochs(workspace, architecture, data, minutes, time.monotonic() - started)
        config = recipe("small", epochs=epochs, seed=seed)
        budget = Budget(left_to_train(minutes, time.monotonic() - started), TRAIN_EPOCHS[0])
        running = replace(running, budget=budget)
        teacher = Teacher(teacher=workspace.supernet) if distil else None
        train(
            workspace, data, architecture, config,
            from_supernet=True, teacher=teacher, running=running,
        )  # fmt: skip
        begin("export")
        exported = export(workspace, target, Wish(format=format, calibrate=calibrate), data=val)
        begin("eval")
        metrics = evaluate_bundle(workspace, workspace.bundle(format), val)
        begin("report")
        from .report import write_report

        report = write_report(workspace, val)
        result = {
            **need_thinned(workspace).to_dict(),
            **exported,
            **metrics,
            "report": str(report),
            "build_seconds": round(time.monotonic() - started, 1),
        }
        return workspace.record("build", result)


def _forget(workspace: Workspace) -> None:
    """Forget trainings and what was made of them; files stay until others replace them."""
    workspace.forget("plan", "supernet-plan", "supernet", "thin", "train-plan", "train", "build")
    for folder in (workspace.supernet, workspace.train):
        with workspace.training(folder):
            forget(folder)


def _plan(workspace: Workspace, target: Target, data: DetectionSet, asked: Asked) -> BuildPlan:
    kept = workspace.stages().get("plan")
    if kept is not None:
        kept = {"boxes": "deltas", **kept, "data": str(Path(kept["data"]).absolute())}
        # Versions up to 0.1.0 named CPUs that hide their number without their family.
        same = re.fullmatch(re.escape(kept["device"]) + "-(family|implementer)-.*", target.name)
        kept["device"] = target.name if same else kept["device"]
        different = [key for key, value in asked.items() if kept.get(key) != value]
        if different:
            raise UserError(
                f"{workspace.root} holds a build with another {', '.join(different)}: "
                "use another --out, --restart, or the same options to go on"
            )
        return kept
    begin("plan")
    height, width = asked["asked_size"] or choose_input_size(data.records)
    size = (height, width)
    named = partial(
        search_space,
        input_size=size,
        num_classes=data.num_classes,
        output_stride=asked["output_stride"],
        head=asked["head"],
        boxes=asked["boxes"],
    )
    if asked["asked_space"] is not None:
        space = named(asked["asked_space"])
    else:
        space = choose_space(named, target, asked["target_fps"], data, asked["minutes"])
    seconds = step_seconds(Supernet(space), data)
    budget = SUPERNET_SHARE * asked["minutes"] * 60
    plan: BuildPlan = {
        **asked,
        "space": space.to_dict(),
        "input_size": list(size),
        "supernet_epochs": epochs_for(seconds, len(data.records), budget, SUPERNET_EPOCHS),
    }
    print(
        f"plan: space {space.template.name}, input {size[0]}x{size[1]}, supernet "
        f"{plan['supernet_epochs']} epochs",
        file=sys.stderr,
    )
    workspace.record("plan", plan)
    return plan


def _supernet_epochs(
    workspace: Workspace,
    plan: BuildPlan,
    space: SearchSpace,
    data: DetectionSet,
    spent_s: float,
) -> int:
    """Return the supernet's epochs: the plan's, or fewer where its minutes no longer suffice.

    They are fixed when the supernet is first started, so that it is resumed as it began.
    """
    stages = workspace.stages()
    kept = stages.get("supernet-plan")
    if kept is not None and kept["space"] == plan["space"]:
        return kept["epochs"]
    planned = plan["supernet_epochs"]
    begun = "supernet" in stages or (workspace.supernet / STATE).exists()
    epochs = planned
    if not begun:
        seconds = step_seconds(Supernet(space), data)
        budget, _ = training_budgets(plan["minutes"], spent_s)
        epochs = min(planned, epochs_for(seconds, len(data.records), budget, SUPERNET_EPOCHS))
        _say_replanned("supernet", planned, epochs, seconds * len(data.records), budget)
    workspace.record("supernet-plan", {"epochs": epochs, "space": plan["space"]})
    return epochs


def _plain(architecture: Architecture) -> Any:
    """Return an architecture as `run.json` gives it back."""
    return json.loads(architecture.to_json())


def _train_epochs(
    workspace: Workspace,
    architecture: Architecture,
    data: DetectionSet,
    minutes: float,
    spent_s: float,
) -> int:
    """Return the epochs of the final training, fixed at the first start."""
    kept = workspace.stages().get("train-plan")
    if kept is not None and _plain(architecture) == kept["architecture"]:
        return kept["epochs"]
    if kept is not None and _is_trained_as(workspace, kept["architecture"]):
        print("plan: thinning found another network, it is trained anew", file=sys.stderr)
        workspace.forget("train")
        with workspace.training(workspace.train):
            forget(workspace.train)
    seconds = step_seconds(Detector(architecture), data)
    images = len(data.records)
    _, budget = training_budgets(minutes, spent_s)
    planned = epochs_for(seconds, images, training_budgets(minutes, 0.0)[1], TRAIN_EPOCHS)
    epochs = epochs_for(seconds, images, budget, TRAIN_EPOCHS)
    _say_replanned("training", planned, epochs, seconds * images, budget)
    workspace.record("train-plan", {"epochs": epochs, "architecture": _plain(architecture)})
    return epochs


def _is_trained_as(workspace: Workspace, architecture: object) -> bool:
    """Return whether the training in a workspace is of this architecture, not one of the user's."""
    weights = workspace.train / WEIGHTS
    if not weights.exists():  # in the first epoch
        return (workspace.train / STATE).exists()
    return bool(json.loads(read_info(weights).description) == architecture)


def _say_replanned(
    what: str, planned: int, epochs: int, epoch_seconds: float, budget_s: float
) -> None:
    """Print one line where a plan is changed, or where its fewest epochs take too long."""
    facts = f"{budget_s:.0f} s are left for it, an epoch takes {epoch_seconds:.1f} s"
    if epochs < planned:
        print(f"plan: {what} {epochs} epochs instead of {planned}: {facts}", file=sys.stderr)
    elif epochs * epoch_seconds > budget_s:
        late_s = epochs * epoch_seconds - budget_s
        text = f"plan: {what} keeps {epochs} epochs, the fewest: {facts}, the build ends "
        print(f"{text}{late_s:.0f} s late", file=sys.stderr)
