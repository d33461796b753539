"""What to do about a target out of reach: other ways to run the smallest network, each measured.

Every way is built and timed once, quickly, in a process of its own, as the machine is at the
moment. A way that this machine cannot run is left out.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from deploy.edge.session import installed_runtimes
from latency_tables.devices import Target
from latency_tables.meter import FRESH_COMMAND
from latency_tables.models import write_network
from latency_tables.probe.batch import Bench, precision_of
from latency_tables.probe.fresh import time_network
from latency_tables.probe.setting import Setting
from latency_tables.references import reference_models
from supernet.errors import DeviceError, HeatError
from supernet.heatdetr.architecture import Architecture

from .limits import Cost, Limits
from .thinned import Way

BUDGET_S = 25.0
"""No way is begun that would not be done by then."""
STARTUP_S = 3.0
"""Writing a network, and starting a process that loads it."""
RUNS = 80
"""Most runs of a network in one measurement."""
AIM = 1.05
"""Frame rate that a smaller input is to reach, as a share of the target."""
SIZE_STEP_PX = 32
SMALLEST_SIDE_PX = 64
SIZE_TRIES = 3
PRECISIONS = ("f32", "bf16", "int8")
OTHER_RUNTIME = {"onnxruntime": "openvino", "openvino": "onnxruntime", "torch": "onnxruntime"}
BESIDE_SIZE = (64, 64)
"""Input size of the reference network that is timed in turns with the one that counts."""


def time_way(architecture: Architecture, setting: Setting) -> Cost:
    """Time a network once, quickly; memory and size are NaN.

    Raises `HeatError` where it does not run, and `DeviceError` where the runtime executes another
    precision than that of the setting.
    """
    model = write_network(architecture, setting)
    if setting.precision != "f32":
        executed = precision_of(model, setting)
        if executed != setting.precision:
            raise DeviceError(f"{setting.runtime} executes {setting.precision} as {executed}")
    beside = reference_models(BESIDE_SIZE, setting)
    if model.opener is not None:  # torch's networks live in this process
        with closing(Bench(setting, beside)) as bench:
            result = bench.network(model)
    else:
        result = time_network(model, beside, setting, FRESH_COMMAND)
    return Cost(1000.0 / result.ms, math.nan, math.nan, result.ms, result.timing.p95_ms)


def check_ways(
    architecture: Architecture,
    target: Target,
    limits: Limits,
    fps: float,
    *,
    time_one: Callable[[Architecture, Setting], Cost] = time_way,
) -> list[Way]:
    """Measure the smallest network in other ways, for some 25 s; return them best first.

    `fps` is what it reaches as it was asked for. The ways: a smaller input, then more threads, the
    other runtime, other precisions, fewer threads.
    """
    ways: list[Way] = []
    end = time.monotonic() + BUDGET_S
    longest_s = STARTUP_S

    def measured(flags: str, network: Architecture, setting: Setting, about_ms: float) -> float:
        """Measure a way if there is time; return its frame rate, 0 where there is none."""
        nonlocal longest_s
        started = time.monotonic()
        if started + max(longest_s, STARTUP_S + RUNS * about_ms / 1000.0) > end:
            return 0.0
        try:
            cost = time_one(network, setting)
        except HeatError:
            return 0.0  # not a way on this machine
        finally:
            longest_s = max(longest_s, time.monotonic() - started)
        ways.append(Way(flags, cost.fps, limits.load(cost) <= 1.0))
        print(f"checked {ways[-1]}", file=sys.stderr)
        return cost.fps

    size, reached = architecture.input_size, fps
    for _ in range(SIZE_TRIES):
        smaller = smaller_size(size, reached / limits.fps)
        if smaller is None or (ways and ways[-1].reaches):
            break
        size = smaller
        flags = f"--input-size {size[0]}x{size[1]}"
        reached = measured(
            flags, architecture.with_(input_size=size), target.setting, 1000.0 / limits.fps
        )
        if not reached:
            break
    for flags, setting in other_settings(target):
        measured(flags, architecture, setting, 1000.0 / fps)
    return sorted(ways, key=lambda way: (not way.reaches, -way.fps))


def smaller_size(size: tuple[int, int], share: float) -> tuple[int, int] | None:
    """Return the input size at which a network is `1 / share` times as fast, and a little more.

    Nearly all cost is proportional to the number of pixels. None where nothing smaller is left.
    """
    shrink = math.sqrt(min(1.0, share / AIM))
    height, width = (
        max(SMALLEST_SIDE_PX, int(side * shrink) // SIZE_STEP_PX * SIZE_STEP_PX) for side in size
    )
    smaller = min(height, size[0]), min(width, size[1])
    return None if smaller == size else smaller


def other_settings(target: Target) -> Iterator[tuple[str, Setting]]:
    """Yield the flags and settings of other ways on this machine, the likeliest first."""
    setting = target.setting
    if target.device.kind != "cpu":
        for precision in (*PRECISIONS, "f16"):
            if precision != setting.precision:
                yield f"--precision {precision}", replace(setting, precision=precision)
        return
    cores = target.detected.cores
    counts = sorted({cores, *(cores >> shift for shift in (1, 2, 3) if cores >> shift)})
    threads = [(f"--threads {n}", replace(setting, threads=n)) for n in reversed(counts)]
    yield from (way for way in threads if way[1].threads > setting.threads)
    other = OTHER_RUNTIME[setting.runtime]
    # As `heat thin` takes them over: how threads wait belongs to a runtime.
    there = replace(setting, runtime=other, spinning="brief", pinning=False)
    runtimes = [(f"--runtime {other} ", there)] if installed_runtimes()[other] else []
    for flags, found in runtimes:
        yield flags.strip(), found
    for precision in PRECISIONS:
        if precision != setting.precision:
            for flags, found in [("", setting), *runtimes]:
                yield f"{flags}--precision {precision}", replace(found, precision=precision)
    yield from (way for way in threads if way[1].threads < setting.threads)


def advice(ways: list[Way]) -> str:
    """Return what the message says about the ways that were measured, best first."""
    if not ways:
        return "no other way to run it could be checked"
    reaching = [way for way in ways if way.reaches]
    if reaching:
        return f"measured to reach it, best first: {' or '.join(map(str, reaching))}"
    best = " and ".join(map(str, ways[:2]))
    return f"none of the {len(ways)} other ways checked reaches it, the best: {best}"
