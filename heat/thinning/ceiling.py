"""The frame rate that no machine reaches: a target above it is refused before any work is done.

A roofline of the smallest network of the space that errs on the machine's side everywhere:

    seconds of a frame >= max(multiply-adds / rate, operators * 0.5 us)

The rate of a CPU is its cores * 10 GHz * 4096 multiply-adds a cycle. No CPU has a clock of 10 GHz;
the fastest matrix unit of a core does 1024 INT8 multiply-adds a cycle (Intel AMX), and the factor
of 4 is what Winograd's convolutions save at most (F(4x4, 3x3)). The rate of a GPU is 10^17
multiply-adds a second, ten times the densest low-precision peak of one GPU. Every operator waits
for the one before it: a thread barrier, or a kernel launched within a graph, costs about 1 us, and
no operator is less than one of them. Half of that is taken.
"""

from collections.abc import Sequence
from itertools import product

from latency_tables.costs import size_mb
from latency_tables.devices import Target
from supernet.counting import count_macs
from supernet.errors import UserError
from supernet.heatdetr.architecture import GLOBAL_KINDS, LOCAL_OPERATORS, WIDTH_STEP, Architecture
from supernet.heatdetr.supernet import SearchSpace

from .candidates import Candidate
from .limits import Limits

CPU_MACS_A_SECOND = 4096 * 10e9
"""Of one core."""
GPU_MACS_A_SECOND = 1e17
OPERATOR_S = 0.5e-6
MANY_CORES = 1024
"""Cores of a machine that is not here and does not say how many it has."""


def refuse_impossible(candidates: Sequence[Candidate]) -> None:
    """Raise `UserError` where not one of the candidates could be reached by any machine."""
    refusals = [_refusal(one.space, one.targets, one.limits) for one in candidates]
    if refusals and all(refusals):
        raise UserError(str(refusals[0]))


def ceiling_fps(space: SearchSpace, target: Target) -> float:
    """Return frames per second that the smallest network of the space stays below."""
    if target.device.kind == "cpu":
        rate = CPU_MACS_A_SECOND * (target.detected.cores or MANY_CORES)
    else:
        rate = GPU_MACS_A_SECOND
    return max(
        1.0 / max(count_macs(network).total / rate, len(network.entries()) * OPERATOR_S)
        for network in smallest_networks(space)
    )


def smallest_networks(space: SearchSpace) -> list[Architecture]:
    """Return the smallest network of the space with each global block it may end with."""
    template = space.template
    searched = space.global_choice or template.global_block != "cw"
    width, block = WIDTH_STEP, "R"
    return [
        template.with_(widths=(width,) * 4, blocks=(block,) * 4, global_block=kind)
        for kind in (GLOBAL_KINDS if searched else (template.global_block,))
    ]


def smallest_mb(space: SearchSpace, target: Target) -> float:
    """Return the size of the smallest ONNX file of the space, in MiB: counted, not measured."""
    return min(
        size_mb(network.with_(blocks=blocks), target.setting)
        for network in smallest_networks(space)
        for blocks in product(LOCAL_OPERATORS, repeat=4)
    )


def _too_large(space: SearchSpace, target: Target, limit: Limits) -> str | None:
    """Say which limit of size or memory no network keeps: a process holds its weights at least."""
    limits = {"--max-size-mb": limit.max_size_mb, "--max-memory-mb": limit.max_memory_mb}
    if not limit.bound_memory:
        return None
    least = smallest_mb(space, target)
    for flag, most in limits.items():
        if most is not None and most < least:
            return f"{flag} {most:g}: the smallest network of the space has {least:.2f} MiB"
    return None


def _refusal(space: SearchSpace, targets: Sequence[Target], limits: Sequence[Limits]) -> str | None:
    for target, limit in zip(targets, limits, strict=True):
        large = _too_large(space, target, limit)
        if large is not None:
            return large
        highest = ceiling_fps(space, target)
        if limit.fps > highest:
            height, width = space.template.input_size
            asked = (
                f"--target-fps {limit.target_fps:g}"
                if limit.target_fps and limit.target_fps > highest
                else f"--max-latency-ms {limit.max_latency_ms:g}"
            )
            return (
                f"{asked}: no machine is so fast: the smallest network of the space stays below "
                f"{highest:.0f} FPS ({1000.0 / highest:.2g} ms) at {height}x{width} on any "
                f"{'CPU' if target.device.kind == 'cpu' else 'GPU'}"
                f"{_cores(target)}: ask for less"
            )
    return None


def _cores(target: Target) -> str:
    cores = target.detected.cores
    return f" of {cores} cores" if target.device.kind == "cpu" and cores else ""
