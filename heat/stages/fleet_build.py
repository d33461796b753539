"""`heat fleet`: one training, and a bundle for each device and frame rate."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from deploy.edge.detect import is_bundle
from deploy.edge.session import runtime_version
from deploy.form import FORMAT_OF, Format
from latency_tables.devices import Target
from supernet.data.detection_set import DetectionSet
from supernet.errors import CheckpointError, PromiseError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchConfig, SearchSpace
from supernet.progress import begin, stages
from supernet.train.elastic_task import ElasticConfig
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

from ..records import Result
from ..thinning.again import part_of
from ..thinning.candidates import Candidate, Wanted
from ..thinning.thinned import Thinned, find_thinned
from ..workspace import Workspace
from .elastic import train_elastic
from .export import Wish, export, export_of
from .inherited import finetune_epochs, inherited_of
from .supernet import before_elastic, search_of, train_supernet
from .thin import thin
from .train import train


@stages("supernet", "elastic", "thin", "train", "export", "report")
@part_of("heat fleet")
def build_fleet(
    workspace: Workspace,
    space: SearchSpace,
    data: DetectionSet,
    val: DetectionSet,
    *,
    members: Mapping[str, Wanted],
    target_of: Callable[[Workspace], Target],
    supernet: TrainConfig,
    elastic: TrainConfig,
    backbone: Path | None = None,
    finetuning: Callable[[int], TrainConfig] | None,
    calibrate: bool,
    running: Running,
) -> Result:
    """Train the supernet and the elastic one, thin and export for each; skip what is finished.

    The supernet starts from a pretrained `backbone`. `target_of` finds the device that a member
    was thinned for, `finetuning` gives the settings of so many epochs of fine-tuning. Raises
    `PromiseError` at the end where a target is missed.
    """
    with workspace.claimed(workspace.root / "fleet", f"building a fleet in {workspace.root}"):
        begin("supernet")
        plan = {"epochs": supernet.epochs, "space": space.to_dict()}
        workspace.record("supernet-plan", plan)  # for a fleet that is interrupted here
        search = search_of(workspace, SearchConfig(straight_through=True))
        before_elastic(
            workspace,
            lambda running: train_supernet(
                workspace, data, space, supernet, search, backbone=backbone, running=running
            ),
            running,
        )
        begin("elastic")
        train_elastic(workspace, data, elastic, ElasticConfig(), fleet=members, running=running)
        found: dict[str, Result] = {}
        missed = []
        for name, member in members.items():
            try:
                found[name] = ship(
                    workspace.member(name),
                    name,
                    member,
                    val,
                    target_of,
                    finetune=partial(_finetune, data=data, config=finetuning, running=running)
                    if finetuning is not None
                    else None,
                    calibrate=calibrate,
                    afresh=running.restart,
                )
            except PromiseError as error:
                missed.append(f"{name}: {error}")
                found[name] = missed_by(workspace.member(name), error.result or {})
        begin("report")
        result: dict[str, object] = {"fleet": found, "met": not missed}
        workspace.record("fleet", result)
        from .report import write_report

        result["report"] = str(write_report(workspace, val))
        workspace.record("fleet", result)
    if missed:
        raise PromiseError("; ".join(missed), result)
    return result


def ship(
    workspace: Workspace,
    name: str,
    wanted: Wanted,
    val: DetectionSet,
    target_of: Callable[[Workspace], Target],
    *,
    finetune: Callable[[Workspace], None] | None = None,
    calibrate: bool,
    afresh: bool = False,
) -> Result:
    """Thin and export for one member, where that is not done yet; return what is known of it.

    Between the two its network may be fine-tuned.
    """
    if afresh or not was_thinned_for(workspace, wanted):
        begin("thin")
        print(f"{name}: thinning", file=sys.stderr)
        thin(workspace, wanted.candidates, data=wanted.data, trust=wanted.trust)
    if finetune is not None:
        begin("train")
        finetune(workspace)
    target = target_of(workspace)
    format = FORMAT_OF.get(target.runtime, "onnx")
    if not is_exported(workspace, format, calibrate, val):
        begin("export")
        print(f"{name}: exporting", file=sys.stderr)
        export(workspace, target, Wish(format=format, calibrate=calibrate), data=val)
    return _shipped(workspace, workspace.stage(f"export-{format}"))


def _finetune(
    workspace: Workspace,
    *,
    data: DetectionSet,
    config: Callable[[int], TrainConfig],
    running: Running,
) -> None:
    """Fine-tune the thinned network for a share of the epochs that it was trained."""
    architecture = Architecture.load(workspace.architecture)
    settings = config(finetune_epochs(workspace, architecture))
    again = partial(train, workspace, data, architecture, settings, from_supernet=True)
    try:
        again(running=running)
    except CheckpointError:  # of the network of another target, or of another training
        again(running=replace(running, resume=False, restart=True))


def missed_by(workspace: Workspace, result: Result) -> Result:
    """Return what is known of a member that breaks a promise, by its thinning or its export."""
    found = _shipped(workspace, result) if "bundle" in result else result
    return {**found, "met": False}


def _shipped(workspace: Workspace, exported: Mapping[str, Any]) -> Result:
    """Return what is known of a member by its thinning and its export."""
    thinned = workspace.stage("thin")
    checked = exported.get("accuracy_check") or {}
    ap: Result = {}
    if checked.get("ap") is not None:
        ap = {"ap": round(checked["ap"] / 100, 5), "ap_images": checked.get("images")}
    return {
        **thinned,
        **ap,
        # One that is meant for another machine was timed on this one.
        "deployed_fps": exported["measured_fps"] if thinned["here"] else None,
        "bundle": str(workspace.bundle(exported["format"])),
        "format": exported["format"],
    }


def was_thinned_for(workspace: Workspace, wanted: Wanted) -> bool:
    """Return whether a member was thinned for the same wish, by this supernet, and kept it."""
    thinned = find_thinned(workspace)
    if thinned is None or not thinned.met:
        return False
    if export_of(workspace, FORMAT_OF.get(thinned.runtime, "onnx")).get("broken"):
        return False  # what thinning measured did not come true
    return (
        thinned.candidates == tuple(map(str, wanted.candidates))
        and any(_is_for(thinned, candidate) for candidate in wanted.candidates)
        and inherited_of(workspace, Architecture.load(workspace.architecture)) is not None
    )


def _is_for(thinned: Thinned, candidate: Candidate) -> bool:
    """Return whether a network was thinned as a candidate asks."""
    target = candidate.targets[0]
    return (
        thinned.is_for(target, candidate.limits[0])
        and (not target.here or thinned.runtime_version == runtime_version(target.runtime))
        and thinned.input_size == candidate.space.template.input_size
    )


def is_exported(workspace: Workspace, format: Format, calibrate: bool, val: DetectionSet) -> bool:
    """Return whether the last thinning or training was exported so, and its promise kept."""
    exported = export_of(workspace, format)
    later = workspace.finished(f"export-{format}") >= workspace.finished("train")
    there = "bundle" in exported and is_bundle(workspace.bundle(format))
    asked = {"calibrate": calibrate, "judged_on": str(val.root.absolute()), "raw": False}
    so = all(exported.get(key, value) == value for key, value in asked.items())
    # Without a target it runs otherwise than it was thinned for, and nothing was compared.
    here = workspace.stage("thin").get("here", False)
    compared = not here or exported.get("target_fps") is not None
    return there and not exported["broken"] and later and so and compared
