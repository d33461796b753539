"""Commands of the search: profile, supernet, thin."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..workspace import DEFAULT, Workspace
from .find import find_data, find_space, find_target, last_target
from .options import Data, DeviceName, Out, Result, Runtime, Size, Space, Threads


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
    from ..stages.profile import profile as run

    workspace = Workspace(out)
    target = find_target(device, runtime, threads)
    classes = find_data(workspace, data, "train").num_classes if data is not None else None
    return run(workspace, target, find_space(workspace, space, input_size, classes))


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
    from ..stages.thin import check_target
    from ..stages.thin import thin as run

    check_target(target_fps)
    workspace = Workspace(out)
    target = last_target(workspace, device, runtime, threads, stages=("profile", "thin"))
    trained = workspace.stage("supernet")
    data = data or (Path(trained["data"]) if trained else None)
    found = find_data(workspace, data, "train") if data is not None else None
    classes = found.num_classes if found is not None else None
    chosen = find_space(workspace, space, input_size, classes, stages=("supernet", "profile"))
    return run(workspace, target, target_fps, chosen, data=found, ap_drop=ap_drop)
