"""`heat build`: the whole chain, going on where it was interrupted."""

import sys
import time
from functools import partial
from typing import Any

from deploy.form import RUNTIME_OF, Format
from latency_tables.devices import Target
from supernet.architecture import Architecture, HeadKind
from supernet.coco import DetectionSet
from supernet.detector import Detector
from supernet.errors import UserError
from supernet.recipes import TrainConfig, recipe
from supernet.supernet import SearchConfig, SearchSpace, Supernet
from supernet.training import Running

from ..ceiling import refuse_impossible
from ..limits import Limits
from ..plan import (
    SUPERNET_EPOCHS,
    SUPERNET_SHARE,
    TRAIN_EPOCHS,
    TRAIN_SHARE,
    choose_input_size,
    choose_space,
    epochs_for,
    step_seconds,
)
from ..proxies import ApDropBy
from ..spaces import SPACES, search_space
from ..workspace import Workspace
from .evaluate import evaluate_bundle
from .export import Wish, export
from .form_search import Form
from .profile import profile
from .supernet import train_supernet
from .thin import thin
from .train import train

PROXY_MINUTES = 20.0
"""Shorter builds weigh moves by importance mass: the check of the others takes minutes."""
SHORT_RUN_LOGIT_RATE = 1e-2
"""Step of the selection logits in builds: ten times the default, for runs of few steps."""


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
    seed: int,
) -> dict[str, Any]:
    """Plan, profile, train the supernet, thin, train, export, evaluate; finished stages stand."""
    limits = Limits(target_fps=target_fps)
    if not minutes > 0:
        raise UserError(f"--minutes {minutes:g}: a positive number")
    if RUNTIME_OF[format] != target.runtime:
        raise UserError(
            f"--format {format} runs on {RUNTIME_OF[format]}, the table would be of "
            f"{target.runtime}: give --runtime {RUNTIME_OF[format]}"
        )
    started = time.monotonic()
    size = input_size or choose_input_size(data.records)
    spaces = [
        search_space(name, input_size=size, num_classes=data.num_classes, head=head)
        for name in ([space] if space is not None else SPACES)
    ]
    refuse_impossible([(smallest, (target,), (limits,)) for smallest in spaces])
    asked = {
        "data": str(data.root),
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
    }
    plan = _plan(workspace, target, data, asked)
    chosen = SearchSpace.from_json(plan["space"], "run.json")
    _step("profile")
    if not _stands(workspace, "profile", space=plan["space"], runtime=target.runtime):
        profile(workspace, target, chosen)
    _step("supernet")
    config = TrainConfig(epochs=plan["supernet_epochs"], seed=seed)
    search = SearchConfig(logit_learning_rate=SHORT_RUN_LOGIT_RATE)
    train_supernet(workspace, data, chosen, config, search, running=Running(resume=True))
    _step("thin")
    if not _stands(workspace, "thin", target_fps=target_fps, met=True):
        ap_drop: ApDropBy = "auto" if minutes >= PROXY_MINUTES else "mass"
        thin(workspace, [Form(chosen, (target,), (limits,))], data=data, ap_drop=ap_drop)
    _step("train")
    architecture = Architecture.load(workspace.architecture)
    epochs = _train_epochs(workspace, architecture, data, minutes)
    config = recipe("small", epochs=epochs, seed=seed)
    train(workspace, data, architecture, config, from_supernet=True, running=Running(resume=True))
    _step("export")
    exported = export(workspace, target, Wish(format=format), data=val)
    _step("eval")
    metrics = evaluate_bundle(workspace, workspace.bundle(format), val)
    _step("report")
    from ..report import write_report

    report = write_report(workspace, val)
    result = {
        **workspace.need("thin", "heat thin"),
        **exported,
        **metrics,
        "report": str(report),
        "build_seconds": round(time.monotonic() - started, 1),
    }
    return workspace.record("build", result)


def _plan(
    workspace: Workspace, target: Target, data: DetectionSet, asked: dict[str, Any]
) -> dict[str, Any]:
    stands = workspace.stage("plan")
    if stands is not None:
        different = [key for key, value in asked.items() if stands.get(key) != value]
        if different:
            raise UserError(
                f"{workspace.root} holds a build with another {', '.join(different)}: "
                "use another --out, or the same options to go on"
            )
        return stands
    _step("plan")
    size = tuple(asked["asked_size"] or choose_input_size(data.records))
    named = partial(
        search_space,
        input_size=size,
        num_classes=data.num_classes,
        output_stride=asked["output_stride"],
        head=asked["head"],
    )
    if asked["asked_space"] is not None:
        space = named(asked["asked_space"])
    else:
        space = choose_space(named, target, asked["target_fps"], data, asked["minutes"])
    seconds = step_seconds(Supernet(space), data)
    budget = SUPERNET_SHARE * asked["minutes"] * 60
    plan = {
        **asked,
        "space": space.to_json(),
        "input_size": list(size),
        "supernet_epochs": epochs_for(seconds, len(data.records), budget, SUPERNET_EPOCHS),
    }
    print(
        f"plan: space {space.template.name}, input {size[0]}x{size[1]}, supernet "
        f"{plan['supernet_epochs']} epochs",
        file=sys.stderr,
    )
    return workspace.record("plan", plan)


def _train_epochs(
    workspace: Workspace, architecture: Architecture, data: DetectionSet, minutes: float
) -> int:
    """Return the epochs of the final training, fixed at the first start."""
    stands = workspace.stage("train-plan")
    if stands is not None and stands["architecture"] == architecture.to_json():
        return int(stands["epochs"])
    seconds = step_seconds(Detector(architecture), data)
    budget = TRAIN_SHARE * minutes * 60
    epochs = epochs_for(seconds, len(data.records), budget, TRAIN_EPOCHS)
    workspace.record("train-plan", {"epochs": epochs, "architecture": architecture.to_json()})
    return epochs


def _stands(workspace: Workspace, name: str, **expected: Any) -> bool:
    found = workspace.stage(name)
    return found is not None and all(found.get(key) == value for key, value in expected.items())


def _step(name: str) -> None:
    print(f"== {name}", file=sys.stderr, flush=True)
