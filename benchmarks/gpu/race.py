"""Stage 5: HEAT's presets against DETR-R50, RT-DETR-R18 and D-FINE-N, batch 1, the same for all.

Random weights, no NMS or top-k, channels last. Each entrant in torch as it is (eager), as a CUDA
graph, and compiled by torch, then a graph; all in turns. Multiply-adds are counted by torch, the
same way for all. At 800x1344 the order of the paper's Table 2 is checked, also in float32.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from clock import race_ms
from peers import PEERS
from stage import Stage, median_ms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latency_tables.cuda_graph import Recorded
from latency_tables.models import random_network
from supernet.heatdetr.architecture import Architecture, preset

PAPER_FPS = {"detr-r50": 24.0, "tiny": 25.2, "small": 24.3, "medium": 23.5, "large": 20.5}
"""The paper's Table 2: 800x1333, batch 1, V100."""
OURS = ("tiny", "small", "medium", "large")
THEIRS = ("detr-r50", "rt-detr-r18", "d-fine-n")
SIZES = ((640, 640), (800, 1344))


class Tiny(nn.Module):
    """A peer of a rehearsal."""

    def __init__(self) -> None:
        """Build one convolution."""
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run it."""
        x = self.conv(image)
        return x.mean(1), x


def ours(name: str, size: tuple[int, int], rehearse: bool) -> nn.Module:
    """Return a network of HEAT in deployed form, with self-attention as on the paper's V100."""
    if rehearse:
        small = Architecture(
            widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1
        )
        return random_network(small.with_(input_size=size)).deployed()
    return random_network(preset(name, input_size=size, global_block="oa")).deployed()


def built(
    stage: Stage, size: tuple[int, int], dtype: torch.dtype
) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return the entrants and their inputs."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    bytes_in = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    floats_in = torch.rand(1, 3, *size)
    for name in OURS[: 1 if stage.rehearse else None]:
        found[name] = ours(name, size, stage.rehearse), bytes_in
    for name in THEIRS:
        try:
            torch.manual_seed(0)
            peer = Tiny() if stage.rehearse else PEERS[name](size)
            found[name] = peer.eval(), floats_in
        except Exception as error:
            stage.failed(f"{name} {size}", error)
    for name, (network, image) in found.items():
        network.to(stage.device, dtype).to(memory_format=torch.channels_last)
        for module in network.modules():  # no buffers, copied from the host in every pass
            for constant in ("anchors", "valid_mask"):
                value = getattr(module, constant, None)
                if isinstance(value, Tensor):
                    kind = dtype if value.is_floating_point() else value.dtype
                    setattr(module, constant, value.to(stage.device, kind))
        image = image.to(stage.device)
        if image.is_floating_point():
            image = image.to(dtype).contiguous(memory_format=torch.channels_last)
        found[name] = network, image
    return found


class Cast(nn.Module):
    """A network whose floating point inputs have its own dtype: HEAT's preprocessing is float32."""

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        """Wrap it."""
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, image: Tensor) -> Any:
        """Run the units, each on inputs of its dtype."""

        def call(name: str, *values: Any) -> Any:
            cast = [x.to(self.dtype) if x.is_floating_point() else x for x in values]
            return self.network.units[name](*cast)

        return self.network.wire(call, image)


def macs_of(network: nn.Module, image: Tensor) -> int:
    """Return the multiply-adds of a pass, by torch's counter."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops()) // 2


def raced(
    stage: Stage, size: tuple[int, int], dtype: torch.dtype, *, compiled: bool
) -> dict[str, Any]:
    """Race all entrants at a size; compiling them only if asked."""
    rows: dict[str, dict[str, Any]] = {}
    works: dict[str, dict[str, Callable[[], object]]] = {"eager": {}, "graph": {}, "compiled": {}}
    kept: list[Recorded] = []
    for name, (plain, image) in built(stage, size, dtype).items():
        network = Cast(plain, dtype) if hasattr(plain, "wire") else plain
        try:
            rows[name] = {"gmacs": round(macs_of(network, image) / 1e9, 2)}
        except Exception as error:
            stage.failed(f"{name} {size}", error)
            continue
        works["eager"][name] = lambda network=network, image=image: network(image)
        forms = {"graph": network}
        if compiled and stage.left_s > (0 if stage.rehearse else 25):
            forms["compiled"] = network if stage.rehearse else torch.compile(network)
        for form, module in forms.items():
            try:
                work = stage.record(lambda inputs, module=module: flat(module(inputs[0])), [image])
                kept.append(work)
                works[form][name] = work.replay
            except Exception as error:
                stage.failed(f"{name} {form} {size}", error)
    for form, entrants in works.items():
        rounds = 1 if stage.rehearse else 10
        for name, times in race_ms(entrants, stage.device, rounds).items():
            rows[name][form] = median_ms(times)
    for row in rows.values():
        if "graph" in row and row["gmacs"]:
            row["graph_ms_per_gmac"] = round(row["graph"] / row["gmacs"], 5)
    return rows


def flat(outputs: Any) -> list[Tensor]:
    """Return a network's outputs in a list."""
    return [x for x in (outputs if isinstance(outputs, tuple | list) else [outputs])]


def paper_order(rows: dict[str, Any], form: str) -> dict[str, Any]:
    """Return frame rates over DETR-R50's, ours and the paper's, and whether their order is one."""
    if form not in rows.get("detr-r50", {}):
        return {"missing": "detr-r50"}
    detr = rows["detr-r50"][form]
    found = {n: round(detr / rows[n][form], 3) for n in OURS if form in rows.get(n, {})}
    paper = {n: round(fps / PAPER_FPS["detr-r50"], 3) for n, fps in PAPER_FPS.items() if n in found}
    order = sorted(found, key=lambda name: -found[name])
    return {
        "over_detr_r50": found,
        "paper": paper,
        "same_order": order == sorted(paper, key=lambda n: -paper[n]),
    }


def main() -> None:
    """Race at both sizes in f16, then at the paper's in f32."""
    stage = Stage("race")
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # a CUDA graph cannot read values
    sizes = ((64, 96),) if stage.rehearse else SIZES
    half = torch.bfloat16 if stage.rehearse else torch.float16
    races: dict[str, Any] = {}
    todo = [(size, half, False) for size in sizes]
    todo += [(sizes[-1], torch.float32, False)]
    todo += [(size, half, True) for size in sizes]
    with torch.inference_mode():
        for size, dtype, compiled in stage.in_time(todo, 0.1 if stage.rehearse else 8.0):
            what = f"{size[0]}x{size[1]} {str(dtype).removeprefix('torch.')}"
            what += " compiled" if compiled else ""
            try:
                races[what] = raced(stage, size, dtype, compiled=compiled)
                forms = ("eager", "graph", "compiled") if size == sizes[-1] else ()
                for form in forms:
                    races[what][f"paper_{form}"] = paper_order(races[what], form)
            except Exception as error:
                stage.failed(what, error)
            stage.leave(races=races)


if __name__ == "__main__":
    main()
