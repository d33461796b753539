"""The parts of an optimiser: parameter groups, learning rate, averaged weights, number formats."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..detr.detr import Host
from ..errors import UserError
from ..heatdetr.supernet import Supernet
from .muon import MuonAdamW, is_matrix
from .recipes import Precision, TrainConfig

STEPS: dict[str, tuple[float, ...]] = {
    "1x": (8 / 12, 11 / 12),
    "3x": (27 / 36, 33 / 36),
    "detr": (200 / 300,),
    "sam-detr": (40 / 50,),
    "mtkd": (5 / 7,),
}
"""Where the stepped schedules divide the learning rate by ten, as shares of the epochs."""
FLAT = 0.7
"""Share of the steps after which flat-cosine begins to fall."""


class ParameterGroup(TypedDict):
    """Parameters of one weight decay and learning rate, for a torch optimiser."""

    params: list[nn.Parameter]
    weight_decay: float
    peak: float
    """Learning rate before the schedule's factor."""
    orthogonal: bool
    """Whether Muon, where it is asked for, updates those that are wide enough (`muon.py`)."""


def _group(
    params: list[nn.Parameter], peak: float, decay: float = 0.0, *, orthogonal: bool = False
) -> ParameterGroup:
    return {"params": params, "peak": peak, "weight_decay": decay, "orthogonal": orthogonal}


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Split the parameters of a HeatDETR into decayed convolutions and undecayed vectors.

    The selection logits of a supernet are left out: see `logit_group`.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not is_logit(name):
            (decayed if parameter.ndim == 4 else plain).append(parameter)
    peak = config.learning_rate
    return [
        _group(decayed, peak, config.weight_decay, orthogonal=True),
        _group(plain, peak * config.vector_rate),
    ]


def logit_group(network: Supernet) -> ParameterGroup:
    """Return the selection logits of a supernet, which have a learning rate of their own."""
    logits = [parameter for name, parameter in network.named_parameters() if is_logit(name)]
    return _group(logits, network.config.logit_learning_rate)


def is_logit(name: str) -> bool:
    """Return whether a parameter is one of the selection logits of a supernet."""
    return name.rpartition(".")[2] in ("r", "global_r")


def parameter_groups_of_detr(network: Host, config: TrainConfig) -> list[ParameterGroup]:
    """Split the parameters of a DETR: linear maps decay too, the backbone has its own rate."""
    groups: list[ParameterGroup] = []
    for backbone, peak in (
        (False, config.learning_rate),
        (True, config.learning_rate * config.backbone_rate),
    ):
        own = [
            parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and name.startswith("backbone.") == backbone
        ]
        for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
            chosen = [parameter for parameter in own if (parameter.ndim > 1) == matrices]
            groups.append(_group(chosen, peak, decay, orthogonal=matrices))
    return groups


def make_optimizer(
    groups: Sequence[ParameterGroup], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimiser of a run; Muon's matrices are groups of their own."""
    if config.optimizer == "adamw":
        plain = [{**group} for group in groups]
        return torch.optim.AdamW(plain, lr=config.learning_rate, fused=True)
    split = [
        {
            **group,
            "params": [
                weight
                for weight in group["params"]
                if (group["orthogonal"] and is_matrix(weight)) == orthogonal
            ],
            "orthogonal": orthogonal,
        }
        for group in groups
        for orthogonal in (False, True)
    ]
    # In bfloat16 where it may be, and where the device computes it.
    half = all(
        autocast_type(precision, device) is torch.bfloat16
        for precision in (config.precision, "auto")
    )
    return MuonAdamW(split, config.learning_rate, torch.bfloat16 if half else torch.float32)


def rate_factor(step: float, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step relative to its peak."""
    warmup = min(config.warmup_steps, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule in ("cosine", "flat-cosine"):
        flat = warmup if config.schedule == "cosine" else round(FLAT * steps)
        share = max(0.0, step - flat) / max(1, steps - flat)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
    return float(0.1 ** sum(step >= share * steps for share in STEPS[config.schedule]))


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the type of autocast; None for none, which computes in float32.

    `auto` is bfloat16 where the device computes it, else float16 on CUDA and float32 on a CPU.
    """
    if precision == "f16" and device.type != "cuda":
        raise UserError("--precision f16 is for CUDA devices: bf16, f32 or auto on a CPU")
    if precision != "auto":
        return {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
    if device.type == "cuda":
        computed = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if computed else torch.float16
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8") if flags.exists() else ""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if wide and ("avx512_bf16" in text or "amx_bf16" in text) else None


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return what scales losses so that gradients in f16 do not vanish; idle in other types."""
    in_f16 = autocast_type(precision, device) is torch.float16
    return torch.amp.GradScaler(device.type, enabled=in_f16)


class Averaged:
    """Exponential moving average of a network's weights and statistics."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start from a copy of the network's weights."""
        self.decay = decay
        self.weights = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the averages of an earlier run, onto the device of these."""
        for key, value in self.weights.items():
            value.copy_(weights[key])

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the averages towards the network; the decay ramps up over the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[key].lerp_(value, 1 - decay)
            else:
                self.weights[key].copy_(value)

    @torch.no_grad()
    def outputs(self, network: nn.Module, images: Tensor, precision: Precision) -> Sequence[Tensor]:
        """Return what a network in training gives, as in evaluation, with these weights."""
        training, dtype = network.training, autocast_type(precision, images.device)
        network.eval()
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            found: Sequence[Tensor] = functional_call(network, self.weights, (images,))
        network.train(training)
        return found
