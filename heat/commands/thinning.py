"""The command `heat thin`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from supernet.errors import UserError

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .options import Out, Runtime, Space, Threads
from .together import altered, one_of, refuse_beside

TRIALS = 200
"""Networks that a study tries where no number is given."""


def thin(
    *,
    target_fps: float | None = None,
    max_latency_ms: float | None = None,
    at: Literal["p50", "p95"] = "p50",
    max_memory_mb: float | None = None,
    max_size_mb: float | None = None,
    device: Annotated[list[str] | None, Parameter(negative=())] = None,
    runtime: Runtime = None,
    precision: str | None = None,
    threads: Threads = None,
    space: Space = None,
    input_size: str | None = None,
    data: Path | None = None,
    trust_table: bool = False,
    ap_drop: Literal["auto", "mass", "features", "loss", "ap"] = "auto",
    search: Literal["greedy", "tpe", "nsga2", "random"] = "greedy",
    trials: int | None = None,
    study: str | None = None,
    frontier: bool = False,
    targets: Path | None = None,
    explain: bool = False,
    diff: tuple[Path, Path] | None = None,
    out: Out = DEFAULT,
) -> Result:
    """Cut the supernet down until it runs at the target on this device, and prove it.

    Args:
        target_fps: Frames per second that the deployed network must reach, batch 1.
        max_latency_ms: Most milliseconds of a frame, instead of or besides a frame rate.
        at: Percentile of the latency that --max-latency-ms is about.
        max_memory_mb: Most peak memory of the process that runs it, MiB.
        max_size_mb: Largest ONNX file, MiB.
        device: Device, the last profiled one by default. Given several times, one network must
            keep the limits on all of them; NAME:RUNTIME:PRECISION where they differ.
        precision: f32, f16, bf16, int8; several with commas between, and the best is searched.
        input_size: HxW in multiples of 32, or 320..640: the best size of these is searched.
        data: Data set in COCO or YOLO format, on which moves are judged; the supernet's by default.
        trust_table: Use a table that is not of this machine, runtime version or precision; what
            cannot be measured here is then only predicted.
        ap_drop: What a move costs: importance mass, distance of features, detection loss, true AP;
            auto takes the first that ranks 20 random moves as true AP does, loss where the
            supernet has less than 1 point of AP, mass without data.
        search: The paper's greedy search, or an Optuna study that starts from its result.
        trials: Networks that a study tries, 200 by default.
        study: Where it is kept, so that others can join: a file, or a database URL.
        frontier: Go on to the smallest network and write those on the way, each another target's.
        targets: TOML file of a fleet: several devices and targets, a network for each.
        explain: Say why the last thinned network looks as it does.
        diff: Two architecture.json; what differs between them?
    """
    arguments = locals()
    workspace = Workspace(out)
    one_of({"--diff": diff, "--explain": explain, "--targets": targets})
    for asked, what, why, read in (
        ("--diff", diff, "nothing is thinned", ()),
        ("--explain", explain, "nothing is thinned", ()),
        ("--targets", targets, "the fleet file says what is wanted", ("data", "space", "ap_drop")),
    ):
        if what:
            ignored = altered(thin, arguments, but=(asked[2:], "out", *read))
            refuse_beside(asked, ignored, f"{why}, leave it out")
    if trials is not None and search == "greedy":
        raise UserError(f"--trials {trials} is of a study: give --search tpe, nsga2 or random")
    if diff is not None:
        from ..stages.explain import compare

        return compare(*diff)
    if explain:
        from ..stages.explain import explain as run_explain

        return run_explain(workspace)
    if targets is not None:
        from ..stages.fleet import thin_fleet
        from .fleet_file import find_members

        members = find_members(workspace, targets, space=space, data=data)
        return thin_fleet(workspace, members, ap_drop=ap_drop)
    from ..stages.thin import StudyPlan
    from ..stages.thin import thin as run
    from ..thinning.limits import Limits
    from .candidates import find_candidates

    limits = Limits(
        target_fps=target_fps,
        max_latency_ms=max_latency_ms,
        percentile=at,
        max_memory_mb=max_memory_mb,
        max_size_mb=max_size_mb,
    )
    if trials is not None and trials < 1:
        raise UserError(f"--trials {trials}: at least 1")
    if study is not None and search == "greedy":
        raise UserError("--study keeps an Optuna study: give --search tpe, nsga2 or random")
    if frontier and search != "greedy":
        raise UserError(f"--frontier is of the greedy search's chain: leave out --search {search}")
    if study is not None:
        from ..thinning.study_storage import check_storage

        check_storage(study)  # before a minute of measuring
    candidates, found = find_candidates(
        workspace,
        limits,
        devices=device or [],
        runtime=runtime,
        threads=threads,
        precision=precision,
        space=space,
        input_size=input_size,
        data=data,
        trust=trust_table,
    )
    plan = None if search == "greedy" else StudyPlan(search, trials or TRIALS, study)
    return run(
        workspace,
        candidates,
        data=found,
        ap_drop=ap_drop,
        trust=trust_table,
        frontier=frontier,
        study=plan,
    )
