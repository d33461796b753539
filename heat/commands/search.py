"""Commands that come before thinning: profile, supernet."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from supernet.errors import UserError

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .find import find_data, find_space, find_target
from .options import (
    Accumulate,
    Backbone,
    BatchSize,
    Boxes,
    DeviceName,
    Epochs,
    Head,
    LearningRate,
    Out,
    OutputStride,
    Precision,
    Restart,
    Resume,
    Runtime,
    Seed,
    Size,
    Space,
    Threads,
    Workers,
)
from .together import altered, one_of, refuse_beside

if TYPE_CHECKING:
    from supernet.heatdetr.architecture import GlobalBlock


def profile(
    *,
    device: DeviceName = "cpu",
    runtime: Runtime = None,
    precision: Precision = None,
    threads: Threads = None,
    spinning: Literal["brief", "always", "never"] = "brief",
    pinning: bool = False,
    input_size: Size = None,
    space: Space = None,
    output_stride: OutputStride = None,
    head: Head = None,
    boxes: Boxes = None,
    global_block: Literal["cw", "oa", "act", "enact", "pool"] | None = None,
    data: Path | None = None,
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

    What is already measured is kept.

    Args:
        spinning: How ONNX Runtime's threads wait: brief sleeps soon and serves best beside other
            work, always is as ONNX Runtime does by itself, never costs time alone.
        pinning: Keep each thread on one core. Both are part of the table, and the bundle that comes
            of it runs the same way.
        global_block: Attention of S4, SAM_4, SCM and TCM. With any but cw the table prices original
            attention, and ACT, ENACT and pool, which thinning may put in its place.
        data: Data set in COCO or YOLO format, whose number of classes the head takes.
        host: USER@BOX; measure there, over ssh, with a probe that needs numpy and the runtime.
        host_python: Python on that host.
        pack: Write the probe and its models to this file, to be carried to the device.
        unpack: Read the results file that a carried probe wrote.
        estimate: Make the table from the device's published figures; every row is marked so.
        few_shot: With --estimate, measure so many entries on this machine, or on --host, and
            correct the estimate by them.
        compare: Two tables; do they agree within 5 % on the median entry?
        show: Device whose tables are drawn: milliseconds against width, for each operator.
    """
    arguments = locals()
    one_of(
        {
            "--compare": compare,
            "--show": show,
            "--unpack": unpack,
            "--pack": pack,
            "--estimate": estimate,
            # Beside --few-shot it is where an estimate is corrected.
            "--host": host if not (estimate and few_shot) else None,
        }
    )
    for asked, what in (("--compare", compare), ("--show", show), ("--unpack", unpack)):
        if what is not None:
            ignored = altered(profile, arguments, but=(asked[2:], "out"))
            refuse_beside(asked, ignored, "nothing is measured, leave it out")
    if host_python != "python3" and host is None:
        raise UserError(f"--host-python {host_python} is of a host: give --host USER@BOX too")
    workspace = Workspace(out)
    if compare is not None:
        from ..stages.show import compare_tables

        return compare_tables(*compare)
    if show is not None:
        from ..stages.show import show_device

        return show_device(workspace, show)
    if unpack is not None:
        from ..stages.elsewhere import unpack_results

        return unpack_results(workspace, unpack)
    if few_shot < 0:
        raise UserError(f"--few-shot {few_shot}: 0 or more entries")
    if few_shot and not estimate:
        raise UserError("--few-shot corrects an estimate: give --estimate too")
    elsewhere = estimate or pack is not None or host is not None
    target = find_target(device, runtime, threads, precision, elsewhere=elsewhere)
    if spinning != "brief" and target.runtime != "onnxruntime":
        raise UserError(f"--spinning {spinning}: {target.runtime} waits as it does, leave it out")
    if (spinning != "brief" or pinning) and target.device.kind != "cpu":
        raise UserError(f"--spinning and --pinning are for CPUs: {target.device.name} is none")
    target = replace(target, spinning=spinning, pinning=pinning)
    classes = find_data(workspace, data, "train").num_classes if data is not None else None
    chosen = find_space(
        workspace,
        space,
        input_size,
        classes,
        stages=("supernet", "profile"),
        output_stride=output_stride,
        head=head,
        boxes=boxes,
    )
    if global_block is not None:
        chosen = replace(chosen, template=chosen.template.with_(global_block=global_block))
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
    data: Path | None = None,
    space: Space = None,
    input_size: Size = None,
    output_stride: OutputStride = None,
    head: Head = None,
    boxes: Boxes = None,
    epochs: Epochs = 12,
    batch_size: BatchSize = 8,
    accumulate: Accumulate = 1,
    learning_rate: LearningRate = 1e-3,
    ema_decay: float = 0.998,
    train_precision: Literal["auto", "f32", "bf16"] = "auto",
    logit_learning_rate: float = 1e-3,
    noise: Literal["gumbel", "uniform"] = "gumbel",
    straight_through: bool = False,
    global_block: Literal["cw", "oa", "enact", "pool", "search"] | None = None,
    backbone: Backbone = None,
    elastic: bool = False,
    elastic_epochs: int | None = None,
    drawn: int = 1,
    teach_from: float = 1.0,
    targets: Path | None = None,
    workers: Workers = None,
    seed: Seed = 0,
    resume: Resume = False,
    restart: Restart = False,
    show: bool = False,
    out: Out = DEFAULT,
) -> Result:
    """Train the supernet: every position holds RepCNN, WMSA, SWMSA and Identity.

    On several GPUs or processes: torchrun --nproc-per-node N -m heat supernet ...

    Args:
        data: Data set in COCO or YOLO format; needed but with --show.
        ema_decay: Decay of the averaged weights that are saved; 0 saves the raw ones.
        train_precision: Autocast. auto: bf16 where the hardware computes it, else f32.
        logit_learning_rate: Adam step of the selection logits.
        noise: Gumbel noise, or the paper's literal uniform noise.
        global_block: Attention of S4, SAM_4, SCM and TCM: channel-wise (CPUs), original (large
            GPUs; thinning may put ACT, ENACT or pool in its place), ENACT or pool from the start,
            or cw and oa with two logits; thinning for a CPU takes cw.
        straight_through: Run one drawn operator per position, for less memory (1.6 times less was
            measured).
        elastic: Then train every network that thinning may select, on shared weights: what heat
            thin finds needs no training of its own.
        elastic_epochs: Passes over the training data for that; 150 by default.
        drawn: Networks that are trained beside the largest in a step.
        teach_from: Share of those epochs after which they also learn the largest one's maps; 1 for
            never: it gave nothing where all are trained from scratch.
        targets: TOML file of a fleet: networks on the way to these targets are trained. Without it
            those on the way from the largest to the smallest, by multiply-adds.
        show: Plot the selection logits of every position by epoch, and its importance.
    """
    if show:
        ignored = altered(supernet, locals(), but=("show", "out"))
        refuse_beside("--show", ignored, "nothing is trained, leave it out")
    if not elastic and (elastic_epochs is not None or targets is not None):
        raise UserError("--elastic-epochs and --targets are of an elastic supernet: add --elastic")
    if not elastic and (drawn != 1 or teach_from != 1.0):
        raise UserError("--drawn and --teach-from are of an elastic supernet: add --elastic")
    if show:
        from ..stages.show import show_supernet

        return show_supernet(Workspace(out))
    if data is None:
        raise UserError("which data? give --data DIR (a small set: heat data shapes)")
    from latency_tables.probe.machine import physical_cores
    from supernet.heatdetr.supernet import SearchConfig
    from supernet.train.elastic_task import ElasticConfig
    from supernet.train.recipes import SUPERNET, changed, recipe
    from supernet.train.running import Running

    from ..stages.elastic import PLAN, refuse_several_processes, train_elastic
    from ..stages.supernet import before_elastic, train_supernet
    from .fleet_file import find_members

    workspace = Workspace(out)
    train_set = find_data(workspace, data, "train")
    chosen = find_space(
        workspace,
        space,
        input_size,
        train_set.num_classes,
        default="midi",
        output_stride=output_stride,
        head=head,
        boxes=boxes,
    )
    if global_block is not None:
        block: GlobalBlock = "cw" if global_block == "search" else global_block
        chosen = replace(
            chosen,
            template=chosen.template.with_(global_block=block),
            global_choice=global_block == "search",
        )
    config = changed(
        SUPERNET,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        precision=train_precision,
        seed=seed,
    )
    search = SearchConfig(
        noise=noise, straight_through=straight_through, logit_learning_rate=logit_learning_rate
    )
    running = Running(resume=resume, restart=restart, workers=workers, threads=physical_cores())
    config_of_all = ElasticConfig(drawn=drawn, teach_from=teach_from)
    # What cannot be is refused now, not after the first training.
    elastic_config = recipe(
        "small",
        epochs=elastic_epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        precision=train_precision,
        seed=seed,
    )
    fleet = find_members(workspace, targets, space=chosen, data=data) if targets else None
    if targets is not None and not (workspace.elastic / PLAN).exists():
        refuse_several_processes()

    def train(running: Running) -> Result:
        return train_supernet(
            workspace, train_set, chosen, config, search, backbone=backbone, running=running
        )

    if not elastic:
        return train(running)
    before_elastic(workspace, train, running)
    return train_elastic(
        workspace,
        train_set,
        elastic_config,
        config_of_all,
        fleet=fleet,
        running=running,
    )
