"""Stage 5: HEAT's presets against DETR-R50, RT-DETR-R18 and D-FINE-N, batch 1, the same for all.

Random weights, no NMS or top-k, channels last. Each entrant in torch as it is (eager) and as a CUDA
graph, all in turns; then, in the time that is left, compiled by torch beside its graph. Multiply-
adds are counted by torch, the same way for all. At 800x1344 the order of the paper's Table 2 is
checked, also in float32, which is not TF32. DETR-R50 runs without its attention mask, which is
full: transformers leaves it out by itself only where no graph is recorded.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from clock import race_ms
from peers import PEERS
from stage import Stage, median_ms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latency_tables.models import random_network
from supernet.heatdetr.architecture import Architecture, preset

PAPER_FPS = {"detr-r50": 24.0, "tiny": 25.2, "small": 24.3, "medium": 23.5, "large": 20.5}
"""The paper's Table 2: 800x1333, batch 1, V100."""
OURS = ("tiny", "small", "medium", "large")
THEIRS = ("detr-r50", "rt-detr-r18", "d-fine-n")
SIZES = ((640, 640), (800, 1344))
SMALL = (256, 256)
"""Of a rehearsal: RT-DETR and D-FINE choose 300 of the places of their feature maps."""
RACE_S = 8.0
"""Seconds under which no other race is started."""
COMPILE_S = 25.0
"""Seconds under which nothing more is compiled."""

Entrants = dict[str, tuple[nn.Module, Tensor]]
"""Networks and their images: [1, H, W, 3] uint8 for ours, [1, 3, H, W] for the peers."""


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


def theirs(name: str, size: tuple[int, int], rehearse: bool) -> nn.Module:
    """Return a peer; where a rehearsal has no transformers, a small network."""
    if rehearse and importlib.util.find_spec("transformers") is None:
        return Tiny()
    if name == "detr-r50":
        from transformers.models.detr import modeling_detr

        modeling_detr.create_bidirectional_mask = lambda *_, **__: None
    torch.manual_seed(0)
    return PEERS[name](size).eval()


@cache
def built(stage: Stage, size: tuple[int, int]) -> Entrants:
    """Return the entrants and their inputs on the device."""
    found: Entrants = {}
    bytes_in = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    floats_in = torch.rand(1, 3, *size).contiguous(memory_format=torch.channels_last)
    for name in OURS[: 1 if stage.rehearse else None]:
        found[name] = ours(name, size, stage.rehearse), bytes_in
    for name in THEIRS:
        try:
            found[name] = theirs(name, size, stage.rehearse), floats_in
        except Exception as error:
            stage.failed(f"{name} {size}", error)
    return {
        name: (network.to(stage.device), image.to(stage.device))
        for name, (network, image) in found.items()
    }


def converted(stage: Stage, size: tuple[int, int], dtype: torch.dtype) -> Entrants:
    """Return the entrants of a size in a type; those returned before are converted with them."""
    found: Entrants = {}
    for name, (network, image) in built(stage, size).items():
        network.to(dtype).to(memory_format=torch.channels_last)
        for module in network.modules():  # no buffers, copied from the host in every pass
            for constant in ("anchors", "valid_mask"):
                value = getattr(module, constant, None)
                if isinstance(value, Tensor):
                    kind = dtype if value.is_floating_point() else value.dtype
                    setattr(module, constant, value.to(stage.device, kind))
        image = image.to(dtype) if image.is_floating_point() else image
        found[name] = Cast(network, dtype) if hasattr(network, "wire") else network, image
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


def raced(stage: Stage, rows: dict[str, Any], size: tuple[int, int], dtype: torch.dtype) -> None:
    """Race all entrants at a size, one form after the other."""
    entrants: Entrants = {}
    for name, (network, image) in converted(stage, size, dtype).items():
        try:
            rows[name] = {"gmacs": round(macs_of(network, image) / 1e9, 2)}
            entrants[name] = network, image
        except Exception as error:
            stage.failed(f"{name} {size} {dtype}", error)
    for form, work in (("eager", eager), ("graph", recorded)):
        works: dict[str, Callable[[], object]] = {}
        for name, (network, image) in entrants.items():
            try:
                works[name] = work(stage, network, image)
            except Exception as error:
                stage.failed(f"{name} {form} {size} {dtype}", error)
        rounds = 1 if stage.rehearse else 10
        for name, times in race_ms(works, stage.device, rounds).items():
            rows[name][form] = median_ms(times)
        stage.leave()
    for name in entrants:
        if "graph" in rows[name] and rows[name]["gmacs"]:
            per_gmac = rows[name]["graph"] / rows[name]["gmacs"]
            rows[name]["graph_ms_per_gmac"] = round(per_gmac, 5)


def compiled(
    stage: Stage, row: dict[str, Any], size: tuple[int, int], dtype: torch.dtype, name: str
) -> None:
    """Compile an entrant, and race it with itself as a graph that is not compiled."""
    network, image = converted(stage, size, dtype)[name]
    torch.compiler.reset()  # or the code that entrants share is compiled eight times at most
    module = network if stage.rehearse else torch.compile(network)
    works = {
        "graph": recorded(stage, network, image),
        "compiled": recorded(stage, module, image),
    }
    times = race_ms(works, stage.device, 1 if stage.rehearse else 10)
    ms = {form: median_ms(values) for form, values in times.items()}
    row |= {
        "compiled": ms["compiled"],
        "compiled_over_graph": round(ms["compiled"] / ms["graph"], 4),
    }


def eager(stage: Stage, network: nn.Module, image: Tensor) -> Callable[[], object]:
    """Return a pass of a network as it is."""
    return lambda: network(image)


def recorded(stage: Stage, network: nn.Module, image: Tensor) -> Callable[[], object]:
    """Return a pass of a network as a CUDA graph."""
    return stage.record(lambda inputs: flat(network(inputs[0])), [image]).replay


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
    """Race at both sizes in f16, then at the paper's in f32; compile last."""
    stage = Stage("race")
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # a CUDA graph cannot read values
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    sizes = (SMALL,) if stage.rehearse else SIZES
    half = torch.bfloat16 if stage.rehearse else torch.float16
    races: dict[str, Any] = stage.result.get("races", {})
    stage.leave(tf32=False, races=races)
    variants = {
        f"{size[0]}x{size[1]} {str(dtype).removeprefix('torch.')}": (size, dtype)
        for size, dtype in [*((size, half) for size in sizes), (sizes[-1], torch.float32)]
    }
    names = (*OURS[: 1 if stage.rehearse else None], *THEIRS)
    todo = [
        what
        for what in variants
        if not all("graph" in races.get(what, {}).get(name, {}) for name in names)
    ]
    with torch.inference_mode():
        for what in stage.in_time(todo, 0.1 if stage.rehearse else RACE_S):
            size, dtype = variants[what]
            rows = races.setdefault(what, {})
            try:
                raced(stage, rows, size, dtype)
            except Exception as error:
                stage.failed(what, error)
            if size == sizes[-1]:
                rows |= {f"paper_{form}": paper_order(rows, form) for form in ("eager", "graph")}
            stage.leave()
        lacking = {
            f"{name} {what} compiled": (what, name)
            for what, (_, dtype) in variants.items()
            for name in names
            if dtype == half and "compiled" not in races.get(what, {}).get(name, {"compiled": 0})
        }
        for key in stage.in_time(lacking, 0.1 if stage.rehearse else COMPILE_S):
            what, name = lacking[key]
            rows = races[what]
            try:
                compiled(stage, rows[name], *variants[what], name)
            except Exception as error:
                stage.failed(key, error)
            if variants[what][0] == sizes[-1]:
                rows["paper_compiled"] = paper_order(rows, "compiled")
            stage.leave()


if __name__ == "__main__":
    main()
