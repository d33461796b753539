"""The `heat` command: parse, call one public function, print.

People read stderr; programs read the last line of stdout, one JSON object. Exit codes: 0 fine,
1 a fault of ours, 2 a mistake in the request, 3 a promise not kept, 130 interrupted.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from supernet.errors import HeatError

from . import __version__
from .workspace import DEFAULT, Workspace

if TYPE_CHECKING:
    from latency_tables.devices import Target
    from supernet.coco import DetectionSet
    from supernet.supernet import SearchSpace

app = App(
    name="heat",
    version=__version__,
    help="Name a device and a frame rate, get an object detector that provably runs there.",
)
data_app = App(name="data", help="Look at detection data, or make some.")
app.command(data_app)

Result = dict[str, Any]
Format = Literal["onnx", "openvino"]
RuntimeName = Literal["onnxruntime", "openvino"]
SpaceName = Literal["micro", "mini", "midi", "base", "large"]

Out = Annotated[Path, Parameter(help="The workspace: what every stage leaves and finds.")]
DeviceName = Annotated[str, Parameter(help="Device file to use; `heat devices` lists them.")]
Threads = Annotated[
    int | None, Parameter(help="CPU threads of the deployed model; the device's by default.")
]
Runtime = Annotated[
    RuntimeName | None,
    Parameter(help="Runtime that measures and deploys; the device's by default."),
]
Size = Annotated[str | None, Parameter(help="Network input HxW in multiples of 32.")]
Data = Annotated[
    Path | None, Parameter(help="COCO-format folder; without it, the data of the last training.")
]
Space = Annotated[SpaceName | None, Parameter(help="Size of the supernet.")]


@app.command
def describe(what: str = "medium", /, *, input_size: Size = None) -> Result:
    """Print an architecture stage by stage, with multiply-adds and parameters.

    Args:
        what: A preset (pico nano tiny small medium large) or an architecture.json.
    """
    from supernet.architecture import Architecture, parse_size, preset

    from .tables import describe_architecture

    path = Path(what)
    architecture = Architecture.load(path) if path.suffix == ".json" else preset(what)
    if input_size is not None:
        architecture = architecture.with_(input_size=parse_size(input_size))
    describe_architecture(architecture)
    macs = architecture.macs()
    return {
        "macs_conv_linear": macs.conv_linear,
        "macs_attention": macs.attention,
        "params_deployed": architecture.params_deployed(),
        "architecture": json.loads(architecture.to_json()),
    }


@app.command
def devices() -> Result:
    """List the devices HEAT knows, and what this machine is."""
    from latency_tables.devices import detect_cpu, detect_gpus, load_devices

    from .tables import list_devices

    known, cpu, gpus = load_devices(), detect_cpu(), detect_gpus()
    list_devices(list(known.values()), cpu, gpus)
    return {"devices": sorted(known), "detected": asdict(cpu), "gpus": list(gpus)}


@app.command
def profile(
    *,
    device: DeviceName = "cpu",
    runtime: Runtime = None,
    threads: Threads = None,
    input_size: Size = None,
    space: Space = None,
    data: Data = None,
    out: Out = DEFAULT,
) -> Result:
    """Measure this machine's latency table through the runtime that will be deployed.

    What is already measured stands. With --data the head has that data's number of classes.
    """
    from .stages.profile import profile as run

    workspace = Workspace(out)
    target = _target(device, runtime, threads)
    classes = _data(workspace, data, "train").num_classes if data is not None else None
    return run(workspace, target, _space(workspace, space, input_size, classes))


@app.command
def supernet(
    *,
    data: Path,
    space: Space = None,
    input_size: Size = None,
    epochs: int = 12,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    logit_learning_rate: float = 1e-3,
    noise: Literal["gumbel", "uniform"] = "gumbel",
    straight_through: bool = False,
    seed: int = 0,
    resume: bool = False,
    restart: bool = False,
    out: Out = DEFAULT,
) -> Result:
    """Train the supernet: every position holds RepCNN, WMSA, SWMSA and Identity.

    Args:
        data: COCO-format folder with a train split.
        epochs: Passes over the training split.
        batch_size: Images per step.
        learning_rate: Peak AdamW step of the weights.
        logit_learning_rate: Adam step of the selection logits.
        noise: Gumbel noise, or the paper's literal uniform noise.
        straight_through: Run one drawn operator per position, for a third of the memory.
        seed: Seed of initialisation, order and augmentation.
        resume: Go on with an unfinished run.
        restart: Begin again, replacing what stands.
    """
    from supernet.supernet import SearchConfig
    from supernet.training import TrainConfig

    from .stages.supernet import train_supernet

    workspace = Workspace(out)
    train_set = _data(workspace, data, "train")
    chosen = _space(workspace, space, input_size, train_set.num_classes, small=True)
    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    search = SearchConfig(
        noise=noise, straight_through=straight_through, logit_learning_rate=logit_learning_rate
    )
    return train_supernet(
        workspace, train_set, chosen, config, search, resume=resume, restart=restart
    )


@app.command
def thin(
    *,
    target_fps: float,
    device: Annotated[
        str | None, Parameter(help="Device; the last profiled one by default.")
    ] = None,
    runtime: Runtime = None,
    threads: Threads = None,
    space: Space = None,
    input_size: Size = None,
    data: Data = None,
    ap_drop: Literal["auto", "loss", "mass"] = "auto",
    out: Out = DEFAULT,
) -> Result:
    """Cut the supernet down until it runs at the target on this device, and prove it.

    Args:
        target_fps: Frames per second that the deployed network must reach, batch 1.
        ap_drop: What a move costs: the detection loss, the importance mass, or what there is.
    """
    from .stages.thin import check_target
    from .stages.thin import thin as run

    check_target(target_fps)
    workspace = Workspace(out)
    target = _target_of(workspace, device, runtime, threads)
    trained = workspace.stage("supernet")
    data = data or (Path(trained["data"]) if trained else None)
    found = _data(workspace, data, "train") if data is not None else None
    classes = found.num_classes if found is not None else None
    chosen = _space(workspace, space, input_size, classes)
    return run(workspace, target, target_fps, chosen, data=found, ap_drop=ap_drop)


@app.command
def train(
    *,
    data: Path,
    architecture: Annotated[
        str | None, Parameter(help="Preset or architecture.json; the thinned one by default.")
    ] = None,
    input_size: Size = None,
    epochs: int = 36,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    schedule: Literal["cosine", "1x", "3x"] = "cosine",
    drop_path: float = 0.0,
    precision: Literal["auto", "f32", "bf16"] = "auto",
    inherit: bool = False,
    seed: int = 0,
    resume: bool = False,
    restart: bool = False,
    out: Out = DEFAULT,
) -> Result:
    """Train the thinned architecture.

    Args:
        data: COCO-format folder with a train split.
        epochs: Passes over the training split.
        batch_size: Images per step.
        learning_rate: Peak AdamW step.
        schedule: Cosine, or the paper's stepped 1x / 3x.
        drop_path: Largest stochastic depth rate.
        precision: bf16 autocast where the CPU has it (auto), always, or never.
        inherit: Start from the supernet's weights instead of from scratch.
        seed: Seed of initialisation, order and augmentation.
        resume: Go on with an unfinished run.
        restart: Begin again, replacing what stands.
    """
    from supernet.architecture import Architecture, parse_size, preset
    from supernet.training import TrainConfig

    from .stages.train import train as run

    workspace = Workspace(out)
    train_set = _data(workspace, data, "train")
    if architecture is None:
        workspace.need("thin", "heat thin --target-fps FPS, or give --architecture")
        chosen = Architecture.load(workspace.architecture)
    elif architecture.endswith(".json"):
        chosen = Architecture.load(Path(architecture))
    else:
        chosen = preset(architecture)
    if input_size is not None:
        chosen = chosen.with_(input_size=parse_size(input_size))
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        drop_path=drop_path,
        precision=precision,
        seed=seed,
    )
    return run(
        workspace,
        train_set,
        chosen,
        config,
        from_supernet=inherit,
        resume=resume,
        restart=restart,
    )


@app.command(name="eval")
def evaluate(
    *,
    data: Data = None,
    split: str = "val",
    bundle: Annotated[
        Path | None, Parameter(help="Bundle to score; without it the checkpoint, in torch.")
    ] = None,
    out: Out = DEFAULT,
) -> Result:
    """Score a bundle, or the checkpoint, by COCO average precision.

    Args:
        split: Split to score on.
    """
    from .stages.evaluate import evaluate_bundle, evaluate_checkpoint

    workspace = Workspace(out)
    found = _data(workspace, data, split)
    if bundle is not None:
        return evaluate_bundle(workspace, bundle, found)
    return evaluate_checkpoint(workspace, found)


@app.command
def export(
    *,
    format: Format = "onnx",
    device: Annotated[
        str | None, Parameter(help="Device; that of the thinning by default.")
    ] = None,
    threads: Threads = None,
    images: Annotated[
        Path | None, Parameter(help="Pictures on which the export is compared with torch.")
    ] = None,
    data: Data = None,
    out: Out = DEFAULT,
) -> Result:
    """Write a bundle that runs without torch, compared with torch and timed.

    Args:
        format: onnx for ONNX Runtime, openvino for OpenVINO.
    """
    from deploy.export import RUNTIME_OF

    from .stages.export import export as run

    workspace = Workspace(out)
    target = _target_of(workspace, device, RUNTIME_OF[format], threads)
    trained = workspace.stage("train")
    data = data or (Path(trained["data"]) if trained else None)
    found = None
    if images is None and data is not None and (data.is_dir() or trained is None):
        found = _data(workspace, data, "val")
    return run(workspace, target, format=format, data=found, images=images)


@app.command
def detect(
    bundle: Path,
    source: Path,
    /,
    *,
    score: float = 0.3,
    save: Path | None = None,
    threads: Threads = None,
) -> Result:
    """Find objects in an image or a folder of images, without torch.

    Args:
        bundle: Folder written by heat export.
        source: Image file, or folder of images.
        score: Lowest score reported.
        save: Folder for pictures with boxes and detections.json; beside the source's name in
            `detections/` by default.
    """
    from deploy.detect import Bundle, detect_files, image_paths, summary
    from supernet.errors import DataError

    loaded = Bundle(bundle, threads)
    if not loaded.card["trained"]:
        print("warning: this bundle is UNTRAINED: its detections mean nothing", file=sys.stderr)
    folder = save if save is not None else Path("detections")
    records, broken = detect_files(loaded, image_paths(source), score=score, save=folder)
    for record in records:
        print(
            f"{record['file']}: {len(record['names'])} objects, {record['latency_ms']:.1f} ms",
            file=sys.stderr,
        )
    print(f"pictures and detections.json are in {folder}", file=sys.stderr)
    if broken:
        print(json.dumps(summary(records)))
        raise DataError(f"{len(broken)} file(s) cannot be decoded: {', '.join(broken[:5])}")
    return summary(records)


@app.command
def build(
    *,
    data: Path,
    target_fps: float,
    device: DeviceName = "cpu",
    runtime: Runtime = None,
    threads: Threads = None,
    minutes: float = 60.0,
    format: Format = "onnx",
    space: Space = None,
    input_size: Size = None,
    seed: int = 0,
    out: Out = DEFAULT,
) -> Result:
    """Everything: plan, profile, supernet, thin, train, export, eval, report.

    Run it again after an interruption and it goes on.

    Args:
        data: COCO-format folder with train and val splits.
        target_fps: Frames per second that the deployed network must reach, batch 1.
        minutes: Time to spend; epochs and supernet size are chosen to fit.
        format: onnx for ONNX Runtime, openvino for OpenVINO.
        seed: Seed of initialisation, order and augmentation.
    """
    from deploy.export import RUNTIME_OF
    from supernet.architecture import parse_size

    from .stages.build import build as run

    workspace = Workspace(out)
    train_set, val_set = _data(workspace, data, "train"), _data(workspace, data, "val")
    size = parse_size(input_size) if input_size is not None else None
    chosen = None
    if space is not None:
        from .plan import choose_input_size

        size = size or choose_input_size(train_set.records)
        chosen = _named_space(space, size, train_set.num_classes)
    return run(
        workspace,
        _target(device, runtime or RUNTIME_OF[format], threads),
        target_fps,
        train_set,
        val_set,
        minutes=minutes,
        format=format,
        space=chosen,
        input_size=size,
        seed=seed,
    )


@app.command
def report(*, data: Data = None, out: Out = DEFAULT) -> Result:
    """Write one offline HTML page of what the workspace holds."""
    from .report import write_report

    workspace = Workspace(out)
    trained = workspace.stage("train")
    known = data is not None or (trained is not None and Path(trained["data"]).is_dir())
    found = _data(workspace, data, "val") if known else None
    return {"report": str(write_report(workspace, found))}


@data_app.command
def check(folder: Path, /) -> Result:
    """Print counts, class map, and what is wrong and where.

    Args:
        folder: COCO-format folder.
    """
    from .tables import check_data

    return check_data(folder)


@data_app.command
def shapes(
    folder: Path = Path("shapes"), /, *, train: int = 160, val: int = 40, seed: int = 0
) -> Result:
    """Make a small detection set of drawn shapes.

    Args:
        folder: Where to write it.
        train: Training images.
        val: Validation images.
        seed: The same seed gives the same set.
    """
    from supernet.errors import UserError
    from supernet.shapes import NAMES, make_shapes

    if train < 1 or val < 1:
        raise UserError(f"--train {train} --val {val}: at least 1 image each")
    if (folder / "annotations").exists():
        raise UserError(f"{folder} already holds annotations: give another folder")
    make_shapes(folder, train=train, val=val, seed=seed)
    return {"data": str(folder), "train": train, "val": val, "names": list(NAMES)}


def _target(device: str, runtime: str | None, threads: int | None) -> "Target":
    from latency_tables.devices import resolve

    return resolve(device, runtime=runtime, threads=threads)


def _target_of(
    workspace: Workspace, device: str | None, runtime: str | None, threads: int | None
) -> "Target":
    """Resolve the device asked for, or the one that the workspace last worked with."""
    last: dict[str, Any] = {}
    for stage in ("profile", "thin"):
        last = {**last, **{k: v for k, v in (workspace.stage(stage) or {}).items() if v}}
    name = device or last.get("requested") or "cpu"
    same = device is None or device == last.get("requested")
    if same:
        threads = threads or last.get("threads")
        runtime = runtime or last.get("runtime")
    return _target(name, runtime, threads)


def _data(workspace: Workspace, root: Path | None, split: str) -> "DetectionSet":
    from supernet.coco import load_split
    from supernet.errors import UserError

    if root is None:
        trained = workspace.stage("train") or workspace.stage("supernet")
        if trained is None:
            raise UserError("which data? give --data DIR (a small set: heat data shapes)")
        root = Path(trained["data"])
    found = load_split(root, split)
    if found.problems:
        print(
            f"warning: {len(found.problems)} problem(s) in {found.annotation_path}, first: "
            f"{found.problems[0].kind} at {found.problems[0].where} (heat data check {root})",
            file=sys.stderr,
        )
    return found


def _space(
    workspace: Workspace,
    name: str | None,
    input_size: str | None,
    classes: int | None,
    *,
    small: bool = False,
) -> "SearchSpace":
    """Return the space asked for, or that of the last profile, or the default one."""
    from supernet.architecture import parse_size
    from supernet.supernet import SearchSpace

    last = workspace.stage("profile")
    if name is None and last is not None:
        space = SearchSpace.from_json(last["space"], "run.json")
        changes: dict[str, Any] = {}
        if input_size is not None:
            changes["input_size"] = parse_size(input_size)
        if classes is not None:
            changes["num_classes"] = classes
        return SearchSpace(template=space.template.with_(**changes), positions=space.positions)
    size = parse_size(input_size or "448x448")
    return _named_space(name or ("midi" if small else "large"), size, classes or 80)


def _named_space(name: str, size: tuple[int, int], classes: int) -> "SearchSpace":
    from .spaces import search_space

    return search_space(name, input_size=size, num_classes=classes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        result = app(
            list(arguments) if arguments is not None else None,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        return _fail(" ".join(str(error).split()) + " (heat --help)", 2)
    except HeatError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished stands, the same command goes on", 130)
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}", 2)
    if isinstance(result, dict):
        print(json.dumps(result))
    return 0


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
