"""Commands that judge and deploy a model: eval, export."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

from cyclopts import Parameter

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .asked_network import deployed_as
from .find import (
    find_data,
    find_judged,
    find_target,
    last_format,
    last_target,
    recorded_data,
)
from .options import (
    AttentionName,
    Calibrate,
    Clusters,
    Data,
    Format,
    NMSHead,
    Out,
    PrecisionName,
    Rounds,
    Threads,
    Which,
    Window,
)
from .together import altered, refuse_beside


def evaluate(
    *,
    data: Data = None,
    split: str = "val",
    bundle: Annotated[
        Path | None, Parameter(help="Bundle to score; without it the checkpoint, in torch.")
    ] = None,
    network: Which = None,
    head: NMSHead = None,
    attention: AttentionName = None,
    rounds: Rounds = None,
    window: Window = None,
    clusters: Clusters = None,
    calibrate: bool = False,
    out: Out = DEFAULT,
) -> Result:
    """Score a bundle, or the checkpoint, by COCO average precision.

    Args:
        split: Split to score on.
        calibrate: Also fit on the split what makes probabilities of the scores, a temperature and a
            bias for each class. The workspace keeps it, later scores and exports use it; AP stays.
            Without it an export fits its own on the val split.
    """
    from supernet.errors import UserError

    from ..stages.evaluate import evaluate_bundle, evaluate_checkpoint

    workspace = Workspace(out)
    found = find_data(workspace, data, split)
    asked = {"attention": attention, "rounds": rounds, "window": window, "clusters": clusters}
    if bundle is not None:
        if head is not None:
            raise UserError("a bundle's head is fixed: heat export --head makes another")
        if any(value is not None for value in asked.values()):
            raise UserError("a bundle's attention is fixed: heat export --attention makes another")
        if network is not None:
            raise UserError(f"--network {network}: a bundle holds one network, leave it out")
        if calibrate:
            raise UserError("--calibrate: a bundle's scores are fixed: heat export calibrates them")
        return evaluate_bundle(workspace, bundle, found)
    change = partial(deployed_as, head=head, **asked)  # type: ignore[arg-type]
    return evaluate_checkpoint(workspace, found, change, network, calibrate=calibrate)


def export(
    *,
    format: Format | None = None,
    precision: Annotated[
        PrecisionName | None,
        Parameter(help="What the runtime shall execute; that of the thinning by default."),
    ] = None,
    raw: bool = False,
    dynamic_batch: bool = False,
    opset: int | None = None,
    max_ap_drop: float = 1.0,
    calibrate: Calibrate = True,
    serving: bool = False,
    device: Annotated[
        str | None, Parameter(help="Device; that of the thinning by default.")
    ] = None,
    gpu: str | None = None,
    quantizer: Literal["heat", "nncf"] = "heat",
    threads: Threads = None,
    images: Annotated[
        Path | None, Parameter(help="Images on which the export is compared with torch.")
    ] = None,
    network: Which = None,
    head: NMSHead = None,
    attention: AttentionName = None,
    rounds: Rounds = None,
    window: Window = None,
    clusters: Clusters = None,
    ladder: str | None = None,
    data: Data = None,
    out: Out = DEFAULT,
) -> Result:
    """Write a bundle that runs without torch, compared with torch and timed.

    Args:
        format: onnx for ONNX Runtime, openvino for OpenVINO, tensorrt for NVIDIA GPUs; by default
            that of the runtime of the thinning.
        raw: End the graph at the head's maps, for accelerators without NMS; detect.py does the
            rest.
        dynamic_batch: Any number of images at once; outputs are padded to 100 objects each.
        opset: ONNX opset for older tools, 17 at least; 20 by default.
        serving: Also write the layout of an inference server: Triton's for onnx, OpenVINO Model
            Server's for openvino.
        gpu: Compute capability of the GPU that an engine is for, 8.9 for instance; the GPU that is
            here by default. Another's is built ahead of time, by TensorRT for RTX, and not run.
        quantizer: What makes int8: HEAT, which keeps parts in floating point where they cost AP,
            or NNCF (OpenVINO only, an extra).
        max_ap_drop: Points of AP that a lower precision may lose on labelled data; in int8, parts
            stay in floating point until it is kept.
        ladder: Frame rates as 60,30,15: a network of an elastic supernet is thinned and exported
            for each, into one folder, whose networks take turns (heat detect
            --hold-fps).
    """
    arguments = locals()
    from deploy.edge.engine import gpu_here
    from deploy.form import RUNTIME_OF
    from supernet.errors import UserError

    from ..stages.export import Wish
    from ..stages.export import export as run
    from ..thinning.thinned import find_thinned

    workspace = Workspace(out)
    stages: tuple[Literal["profile", "thin"], ...] = ("thin", "profile")
    if format is None and gpu is not None:
        format = "tensorrt"
    elif format is None:  # a ladder thins anew, for what was profiled
        format = last_format(workspace, stages if ladder is None else stages[::-1])
    if gpu is not None and format != "tensorrt":
        raise UserError(f"--gpu is for engines: --format tensorrt, not {format}")
    here = gpu_here()
    if here is not None and gpu == here[1]:
        gpu = None  # it is run
    if gpu is not None:
        refuse_beside(
            f"--gpu {gpu}", {f"--device {device}": device}, "the engine is not run, leave it out"
        )
    runtime = RUNTIME_OF[format]
    if ladder is not None:
        read = ("ladder", "format", "precision", "calibrate", "device", "threads", "data", "out")
        ignored = altered(export, arguments, but=read)
        refuse_beside(
            "--ladder", ignored, "its networks are exported as they were thinned, leave it out"
        )
        if data is None:
            data = recorded_data(workspace, "the networks' AP is not measured")
        if data is None:
            raise UserError("--ladder recalibrates its networks on images: give --data")
        return _ladder(workspace, ladder, data, device, runtime, threads, precision, calibrate)
    thinned = find_thinned(workspace)
    far = device is None and thinned is not None and not thinned.here
    if precision is None:
        same = thinned is not None and thinned.runtime == runtime
        used = thinned.precision if thinned is not None and same else "f32"
        precision = cast("PrecisionName", used)
    if gpu is not None:
        # Its graph is checked here; a GPU is not needed.
        target = last_target(workspace, "cpu", "onnxruntime", threads, "f32", stages=stages)
    else:
        if device is None and format == "tensorrt":
            device = "cuda" if here is not None else "cpu"  # where there is none it is said how
        if far:
            # Thinned by a table for a device that is not here: checked and timed on this machine.
            target = find_target(device or "cpu", runtime, threads, precision)
        else:
            target = last_target(workspace, device, runtime, threads, precision, stages=stages)
    asked = data
    if data is None:
        data = recorded_data(workspace, "accuracy is not checked on labelled data")
    found = find_judged(workspace, data) if data is not None else None
    calibration = None
    calibrated_on = data if images is None else asked  # --images alone are those to calibrate on
    if calibrated_on is not None and precision == "int8":
        calibration = find_data(workspace, calibrated_on, "train")
    wish = Wish(
        format=format,
        precision=precision,
        raw=raw,
        dynamic_batch=dynamic_batch,
        opset=opset,
        gpu=gpu,
        quantizer=quantizer,
        max_ap_drop=max_ap_drop,
        calibrate=calibrate,
        serving=serving,
        network=network,
    )
    return run(
        workspace,
        target,
        wish,
        data=found,
        calibration=calibration,
        images=images,
        change=partial(
            deployed_as,
            head=head,
            attention=attention,
            rounds=rounds,
            window=window,
            clusters=clusters,
        ),
    )


def _ladder(
    workspace: Workspace,
    rates: str,
    data: Path,
    device: str | None,
    runtime: str,
    threads: int | None,
    precision: PrecisionName | None,
    calibrate: bool,
) -> Result:
    from supernet.errors import UserError

    from ..stages.ladder import export_ladder
    from ..thinning.candidates import Wanted
    from ..thinning.limits import Limits
    from .candidates import find_candidates
    from .find import target_of_thinning

    try:
        wanted_fps = {float(rate) for rate in rates.split(",")}
        if not all(0 < fps < math.inf for fps in wanted_fps):
            raise ValueError
    except ValueError:
        raise UserError(f"--ladder {rates}: frame rates with commas between, as 60,30,15") from None
    rungs = {}
    for fps in wanted_fps:
        candidates, found = find_candidates(
            workspace,
            Limits(target_fps=fps),
            devices=[device] if device else [],
            runtime=runtime,
            threads=threads,
            precision=precision,
            data=data,
        )
        rungs[fps] = Wanted(candidates, found, trust=False)
    val = find_judged(workspace, data)
    return export_ladder(workspace, rungs, val, target_of=target_of_thinning, calibrate=calibrate)
