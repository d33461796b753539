"""Finds what a command works on: the device, the data, the search space."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploy.teachers.asked import Asked

from ..workspace import Workspace
from .asked_network import ending_in
from .options import Format

if TYPE_CHECKING:
    from latency_tables.devices import Target
    from supernet.data.detection_set import DetectionSet
    from supernet.heatdetr.architecture import BoxKind, HeadKind
    from supernet.heatdetr.supernet import SearchSpace


def find_target(
    device: str,
    runtime: str | None,
    threads: int | None,
    precision: str | None = None,
    *,
    elsewhere: bool = False,
) -> "Target":
    """Resolve a device on this machine, or take it as declared if it is another machine."""
    from latency_tables.devices import declared, resolve

    find = declared if elsewhere else resolve
    return find(device, runtime=runtime, threads=threads, precision=precision)


def last_target(
    workspace: Workspace,
    device: str | None,
    runtime: str | None,
    threads: int | None,
    precision: str | None = None,
    *,
    stages: Sequence[Literal["profile", "thin"]],
    elsewhere: bool = False,
) -> "Target":
    """Resolve the device asked for, or that of the first of the stages that ran."""
    recorded = workspace.stages()
    last = next((recorded[stage] for stage in stages if stage in recorded), None)
    if last is None or device not in (None, last.get("requested")):
        return find_target(device or "cpu", runtime, threads, precision, elsewhere=elsewhere)
    found = find_target(
        last.get("requested", "cpu"),
        last.get("runtime") if runtime is None else runtime,
        last.get("threads") if threads is None else threads,
        last.get("precision") if precision is None else precision,
        elsewhere=elsewhere,
    )
    if found.runtime == last.get("runtime"):
        found = replace(
            found,
            spinning=last.get("spinning", found.spinning),
            pinning=last.get("pinning", found.pinning),
        )
    return found


def target_of_thinning(workspace: Workspace) -> "Target":
    """Return where the network of the last thinning is checked: its device, or this machine.

    For a device that is not here it is checked in f32, in its runtime if a CPU has that.
    """
    from ..thinning.thinned import need_thinned

    thinned = need_thinned(workspace)
    if thinned.here:
        return last_target(
            workspace, None, thinned.runtime, None, thinned.precision, stages=("thin",)
        )
    runtime = "openvino" if thinned.runtime == "openvino" else "onnxruntime"
    if (runtime, "f32") != (thinned.runtime, thinned.precision):
        print(
            f"warning: thinned for {thinned.device} in {thinned.runtime} {thinned.precision}, and "
            f"exported in {runtime} f32, which can be checked here: heat export on "
            f"{thinned.device} makes what was asked for",
            file=sys.stderr,
        )
    return find_target("cpu", runtime, None, "f32")


def last_format(workspace: Workspace, stages: Sequence[Literal["profile", "thin"]]) -> Format:
    """Return the format of the runtime of the first of the stages that ran; onnx without one.

    An engine for a GPU that is not here cannot be built: what was thinned for it is onnx here.
    """
    from deploy.form import FORMAT_OF

    recorded = workspace.stages()
    last = next((recorded[stage] for stage in stages if stage in recorded), None)
    found = FORMAT_OF.get(last.get("runtime", ""), "onnx") if last is not None else "onnx"
    absent = last is not None and not last.get("here", True)
    return "onnx" if found == "tensorrt" and absent else found


def thin_target(
    workspace: Workspace,
    device: str | None,
    runtime: str | None,
    threads: int | None,
    precision: str | None,
    input_size: tuple[int, int],
    *,
    trust: bool,
) -> "Target":
    """Return the device to thin for: this machine, or, trusted, one that only its table knows."""
    from latency_tables.store import find_table
    from supernet.errors import TableError

    asked = (workspace, device, runtime, threads, precision)
    stages: tuple[Literal["profile", "thin"], ...] = ("profile", "thin")
    last = workspace.stages().get("profile")
    absent = last is not None and not last["here"] and device in (None, last["requested"])
    if trust:
        far = last_target(*asked, stages=stages, elsewhere=True)
        if absent:
            assert last is not None
            # A machine that is not the device it was profiled as has a name of its own.
            return replace(far, name=last["device"])
        if not _is_here(far) and find_table(workspace.tables, far, input_size, trust=True):
            return far
    elif absent:
        assert last is not None
        this = "heat profile" if last["requested"] == "cpu" else "--device cpu"
        raise TableError(
            f"the table of {last['requested']} is {last['source']}, not of this machine: heat thin "
            f"--trust-table thins by it without measuring, {this} measures this machine"
        )
    return last_target(*asked, stages=stages)


def _is_here(far: "Target") -> bool:
    """Return whether a target as its device is declared is this machine."""
    from supernet.errors import DeviceError

    try:
        return (
            find_target(far.device.name, far.runtime, far.threads, far.precision).name == far.name
        )
    except DeviceError:
        return False


def asked_of(asked: Asked) -> Asked | None:
    """Return a teacher that is asked for; options of none are an error."""
    from supernet.errors import UserError

    if asked.teacher is not None:
        return asked
    for flag in ("format", "size", "norm", "names"):
        if getattr(asked, f"teacher_{flag}") is not None:
            raise UserError(f"--teacher-{flag}: of which teacher? give --teacher")
    return None


def find_data(workspace: Workspace, root: Path | None, split: str) -> "DetectionSet":
    """Load a split of the folder given, or of the last training; warn of what is wrong in it."""
    from supernet.data.coco import load_split
    from supernet.errors import UserError

    if root is None:
        stages = workspace.known()
        trained = stages.get("train") or stages.get("supernet")
        if trained is None:
            raise UserError("which data? give --data DIR (a small set: heat data shapes)")
        root = Path(trained["data"])
    found = load_split(root, split)
    if split != "train" and not found.num_boxes:
        print(f"warning: no object in {split}: AP none", file=sys.stderr)
    if found.problems:
        print(
            f"warning: {len(found.problems)} problem(s) in {found.annotation_path}, first: "
            f"{found.problems[0].kind} at {found.problems[0].where} (heat data check {root})",
            file=sys.stderr,
        )
    return found


def recorded_data(workspace: Workspace, without: str) -> Path | None:
    """Return the data of the last training; where it is gone, warn and say what is left out.

    The training of a network counts before that of a supernet.
    """
    stages = workspace.known()
    trained = stages.get("train") or stages.get("supernet")
    if trained is None:
        return None
    root = Path(trained["data"])
    if root.exists():
        return root
    print(f"warning: the training's data {root} is gone: {without} (--data DIR)", file=sys.stderr)
    return None


def find_judged(workspace: Workspace, root: Path) -> "DetectionSet":
    """Load the images that a network is shown and compared on: val, or train of a set without."""
    from supernet.data.coco import find_split

    if find_split(root, "val") is not None:
        return find_data(workspace, root, "val")
    print(f"warning: {root} has no val split: images of train are used", file=sys.stderr)
    return find_data(workspace, root, "train")


def _name_of(space: Mapping[str, object]) -> object:
    """Return the name of a recorded space, which is read whole only where it is asked for."""
    template = space.get("template")
    return template.get("name") if isinstance(template, dict) else None


def find_space(
    workspace: Workspace,
    name: str | None,
    input_size: str | None,
    classes: int | None,
    *,
    stages: Sequence[Literal["profile", "supernet"]] = ("profile",),
    default: str = "large",
    output_stride: str | None = None,
    head: "HeadKind | None" = None,
    boxes: "BoxKind | None" = None,
) -> "SearchSpace":
    """Return the space asked for, or that of the first of the stages that ran, or the default."""
    from supernet.heatdetr.input_size import parse_size
    from supernet.heatdetr.supernet import SearchSpace

    from ..spaces import search_space

    recorded = workspace.known()
    last = next((recorded[stage] for stage in stages if stage in recorded), None)
    if last is not None and name in (None, _name_of(last["space"])):
        space = SearchSpace.from_dict(last["space"], "run.json")
        template = space.template
        if input_size is not None:
            template = template.with_(input_size=parse_size(input_size))
        if classes is not None:
            template = template.with_(num_classes=classes)
        space = replace(space, template=template)
    else:
        size = parse_size(input_size or "448x448")
        space = search_space(name or default, input_size=size, num_classes=classes or 80)
    return replace(space, template=ending_in(space.template, output_stride, head, boxes))
