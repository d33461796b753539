"""Commands of the search: profile, supernet, thin."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from supernet.errors import UserError

from ..workspace import DEFAULT, Workspace
from .find import find_data, find_space, find_target, thin_target
from .options import Data, DeviceName, Out, Precision, Result, Runtime, Size, Space, Threads


def profile(
    *,
    device: DeviceName = "cpu",
    runtime: Runtime = None,
    precision: Precision = None,
    threads: Threads = None,
    input_size: Size = None,
    space: Space = None,
    data: Data = None,
    host: str | None = None,
    host_python: str = "python3",
    pack: Path | None = None,
    unpack: Path | None = None,
    estimate: bool = False,
    few_shot: int = 0,
    compare: tuple[Path, Path] | None = None,
    show: str | None = None,
    out: Out = DEFAULT,
) -> Result:
    """Measure a latency table through the runtime that will be deployed.

    What is already measured stands. With --data the head has that data's number of classes.

    Args:
        host: USER@BOX; measure there, over ssh, with a probe that needs numpy and the runtime.
        host_python: Python on that host.
        pack: Write the probe and its models to this file, to be carried to the device.
        unpack: Read the results file that a carried probe wrote.
        estimate: Make the table from the device's published figures; every row says so.
        few_shot: With --estimate, measure so many entries on this machine, or on --host, and
            correct the estimate by them.
        compare: Two tables; do they agree within 5 % on the median entry?
        show: Device whose tables are drawn: milliseconds against width, for each operator.
    """
    workspace = Workspace(out)
    if compare is not None:
        from ..stages.reading import compare_tables

        return compare_tables(*compare)
    if show is not None:
        from ..stages.reading import show_device

        return show_device(workspace, show)
    if unpack is not None:
        from ..stages.elsewhere import unpack_results

        return unpack_results(workspace, unpack)
    if few_shot and not estimate:
        raise UserError("--few-shot corrects an estimate: give --estimate too")
    elsewhere = estimate or pack is not None or host is not None
    target = find_target(device, runtime, threads, precision, elsewhere=elsewhere)
    classes = find_data(workspace, data, "train").num_classes if data is not None else None
    chosen = find_space(workspace, space, input_size, classes)
    if estimate:
        from ..stages.estimate import estimate_table

        return estimate_table(workspace, target, chosen, few_shot, host, host_python)
    if pack is not None:
        from ..stages.elsewhere import pack_probe

        return pack_probe(pack, target, chosen)
    if host is not None:
        from ..stages.elsewhere import profile_host

        return profile_host(workspace, target, chosen, host, host_python)
    from ..stages.profile import profile as run

    return run(workspace, target, chosen)


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
    global_block: Literal["cw", "oa", "search"] = "cw",
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
        global_block: Attention of S4, SAM_4, SCM and TCM: channel-wise (CPUs), original (large
            GPUs), or both with two logits; thinning for a CPU takes cw.
        straight_through: Run one drawn operator per position, for a third of the memory.
        seed: Seed of initialisation, order and augmentation.
        resume: Go on with an unfinished run.
        restart: Begin again, replacing what stands.
    """
    from supernet.supernet import SearchConfig
    from supernet.training import TrainConfig

    from ..stages.supernet import train_supernet

    workspace = Workspace(out)
    train_set = find_data(workspace, data, "train")
    chosen = find_space(workspace, space, input_size, train_set.num_classes, default="midi")
    if global_block != "cw":
        block: Literal["cw", "oa"] = "oa" if global_block == "oa" else "cw"
        chosen = replace(
            chosen,
            template=chosen.template.with_(global_block=block),
            global_choice=global_block == "search",
        )
    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    search = SearchConfig(
        noise=noise, straight_through=straight_through, logit_learning_rate=logit_learning_rate
    )
    return train_supernet(
        workspace, train_set, chosen, config, search, resume=resume, restart=restart
    )


def thin(
    *,
    target_fps: float,
    device: Annotated[
        str | None, Parameter(help="Device; the last profiled one by default.")
    ] = None,
    runtime: Runtime = None,
    precision: Precision = None,
    threads: Threads = None,
    space: Space = None,
    input_size: Size = None,
    data: Data = None,
    max_memory_mb: float | None = None,
    max_size_mb: float | None = None,
    trust_table: bool = False,
    ap_drop: Literal["auto", "loss", "mass"] = "auto",
    out: Out = DEFAULT,
) -> Result:
    """Cut the supernet down until it runs at the target on this device, and prove it.

    Args:
        target_fps: Frames per second that the deployed network must reach, batch 1.
        max_memory_mb: Most peak memory of the process that runs it, MiB.
        max_size_mb: Largest ONNX file, MiB.
        trust_table: Use a table that is not of this machine, runtime version or precision; what
            cannot be measured here is then only predicted.
        ap_drop: What a move costs: the detection loss, the importance mass, or what there is.
    """
    from ..limits import Limits
    from ..stages.thin import thin as run

    limits = Limits(target_fps=target_fps, max_memory_mb=max_memory_mb, max_size_mb=max_size_mb)
    workspace = Workspace(out)
    trained = workspace.stage("supernet")
    data = data or (Path(trained["data"]) if trained else None)
    found = find_data(workspace, data, "train") if data is not None else None
    classes = found.num_classes if found is not None else None
    chosen = find_space(workspace, space, input_size, classes, stages=("supernet", "profile"))
    size = chosen.template.input_size
    target = thin_target(workspace, device, runtime, threads, precision, size, trust=trust_table)
    return run(workspace, target, limits, chosen, data=found, ap_drop=ap_drop, trust=trust_table)
