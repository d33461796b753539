"""The training loop of detectors and supernets, readable top to bottom.

Every epoch draws its own random numbers from (seed, epoch), so a run that was killed and resumed
at its last finished epoch goes on exactly as if it had not been interrupted.
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .atomic import write_bytes
from .augment import AugmentConfig, augment
from .checkpoint import CheckpointInfo, save_checkpoint
from .coco import DetectionSet, Record
from .detector import Detector
from .errors import CheckpointError, DataError, HeatError, UserError
from .letterbox import read_image
from .loss import Loss, Target, detection_loss
from .progress import Progress
from .supernet import Supernet

Schedule = Literal["cosine", "1x", "3x"]
Precision = Literal["auto", "f32", "bf16"]

STEPS: dict[str, tuple[float, float]] = {"1x": (8 / 12, 11 / 12), "3x": (27 / 36, 33 / 36)}
"""Where the stepped schedules divide the learning rate by ten, as shares of the epochs."""
MAX_BAD_STEPS = 20
"""Consecutive steps without a finite loss after which training stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a network is trained; the defaults suit small sets from scratch."""

    epochs: int = 36
    """Passes over the training split."""
    batch_size: int = 8
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak AdamW step; the paper's 1e-4 is for pretrained backbones."""
    weight_decay: float = 0.05
    """Decay of matrices; BN, bias tables, temperatures and logits have none."""
    schedule: Schedule = "cosine"
    """cosine, or the paper's stepped 1x / 3x."""
    warmup_steps: int = 100
    """Steps of linear warm-up (at most a tenth of the run)."""
    clip_norm: float = 5.0
    """Largest gradient norm."""
    ema_decay: float = 0.998
    """Decay of the averaged weights that are saved; 0 saves the raw ones."""
    drop_path: float = 0.0
    """Largest stochastic depth rate of window blocks (the paper's ancestors: 0.2)."""
    precision: Precision = "auto"
    """f32, bf16 autocast, or auto: bf16 where this CPU computes it."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Strength of the augmentation."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"--epochs {self.epochs} --batch-size {self.batch_size}: at least 1")
        if not self.learning_rate > 0:
            raise UserError(f"--learning-rate {self.learning_rate}: a positive number needed")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: 0 <= decay < 1 needed")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training run reports."""

    checkpoint: Path
    epochs: int
    images_per_second: float
    seconds: float
    skipped_steps: int
    stood: bool
    """The run was finished before; nothing was trained."""

    def facts(self) -> dict[str, Any]:
        """Return what a stage records of the run."""
        return {
            "checkpoint": str(self.checkpoint),
            "epochs": self.epochs,
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 1),
            "skipped_steps": self.skipped_steps,
        }


def uses_bf16(precision: Precision) -> bool:
    """Say whether autocast to bfloat16 is on: auto means where the CPU has the instructions."""
    if precision == "auto":
        capabilities = torch.backends.cpu.get_cpu_capability()
        flags = Path("/proc/cpuinfo")
        text = flags.read_text(encoding="utf-8") if flags.exists() else ""
        return "AVX512" in capabilities and ("avx512_bf16" in text or "amx_bf16" in text)
    return precision == "bf16"


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Split parameters into decayed matrices, undecayed vectors, and selection logits."""
    decayed, plain, logits = [], [], []
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2] in ("r", "global_r"):
            logits.append(parameter)
        elif parameter.ndim == 4:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak": config.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": config.learning_rate},
    ]
    if isinstance(network, Supernet):
        peak = network.config.logit_learning_rate
        groups.append({"params": logits, "weight_decay": 0.0, "peak": peak})
    return groups


def rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step relative to its peak."""
    warmup = min(config.warmup_steps, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        share = (step - warmup) / max(1, steps - warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
    return float(0.1 ** sum(step >= share * steps for share in STEPS[config.schedule]))


class Averaged:
    """Exponential moving average of a network's weights and statistics."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start from the network's present weights."""
        self.decay = decay
        self.weights = {key: value.detach().clone() for key, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow the network; the decay ramps up over the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[key].lerp_(value, 1 - decay)
            else:
                self.weights[key].copy_(value)


def batches(
    data: DetectionSet, input_hw: tuple[int, int], config: TrainConfig, epoch: int
) -> Iterator[tuple[Tensor, list[Target]]]:
    """Yield augmented batches of one epoch in a random order; a last odd image joins in."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(data.records))
    starts = batch_starts(len(order), config.batch_size)
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        images, targets = [], []
        for record_index in order[start:stop]:
            image, target = load_sample(data.records[record_index], input_hw, config, rng)
            images.append(image)
            targets.append(target)
        yield torch.stack(images), targets


def batch_starts(num_images: int, batch_size: int) -> list[int]:
    """Return where each batch begins; a last single image joins the batch before it."""
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] == 1:
        starts.pop()  # BatchNorm cannot train on a batch of one
    return starts


def load_sample(
    record: Record, input_hw: tuple[int, int], config: TrainConfig, rng: np.random.Generator
) -> tuple[Tensor, Target]:
    """Read and augment one image."""
    image = read_image(record.path, (record.height, record.width))
    if image is None:
        raise DataError(f"cannot decode {record.path}: see heat data check, or remove it")
    pixels, boxes, kept = augment(image, record.boxes_xyxy, input_hw, config.augment, rng)
    target = Target(torch.from_numpy(boxes), torch.from_numpy(record.labels[kept]))
    return torch.from_numpy(pixels), target


def fit(
    network: Detector,
    data: DetectionSet,
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    restart: bool = False,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train and leave `weights.safetensors` in `folder`; `state.pt` there allows `resume`.

    Both files are replaced after every epoch, each atomically. A finished run of the same settings
    stands as it is; an unfinished or different one needs `resume` or `restart`, so that nothing is
    lost by accident. `on_epoch` receives the epoch and its mean losses. Raises `HeatError` when
    the loss stays not finite.
    """
    hw = network.architecture.input_size
    network.set_drop_path(config.drop_path)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, config), lr=config.learning_rate, betas=(0.9, 0.999)
    )
    average = Averaged(network, config.ema_decay)
    num_batches = len(batch_starts(len(data.records), config.batch_size))
    run = _Run(folder, network, optimizer, average, config, data)
    first = run.first_epoch(resume=resume, restart=restart)
    steps = config.epochs * num_batches
    autocast = uses_bf16(config.precision)
    started = time.monotonic()
    images_seen = 0
    with Progress("train", steps, done=first * num_batches) as bar:
        for epoch in range(first, config.epochs):
            torch.manual_seed(config.seed * 100_003 + epoch)
            network.train()
            if isinstance(network, Supernet):
                network.start_epoch(epoch, config.epochs)
            sums = {"classes": 0.0, "boxes": 0.0}
            bad = 0
            for index, (images, targets) in enumerate(batches(data, hw, config, epoch)):
                step = epoch * num_batches + index
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate_factor(step, steps, config)
                statistics = [buffer.clone() for buffer in network.buffers()]
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logits, deltas = network(images)
                loss = detection_loss(logits.float(), deltas.float(), targets, network.decode)
                images_seen += len(images)
                if not _step(network, optimizer, loss, config.clip_norm):
                    for buffer, before in zip(network.buffers(), statistics, strict=True):
                        buffer.copy_(before)  # the forward pass may have spoilt BatchNorm's
                    bad, run.skipped = bad + 1, run.skipped + 1
                    if bad == MAX_BAD_STEPS:
                        raise HeatError(
                            f"{bad} steps in a row without a finite loss in epoch {epoch + 1}: "
                            f"lower --learning-rate {config.learning_rate}; the last good epoch "
                            f"stands in {folder}"
                        )
                    continue
                bad = 0
                average.update(network, step)
                sums["classes"] += float(loss.classes.detach())
                sums["boxes"] += float(loss.boxes.detach())
                bar.advance(f"epoch {epoch + 1} loss {float(loss.total.detach()):.3f}")
            means = {key: value / num_batches for key, value in sums.items()}
            rate = images_seen / (time.monotonic() - started)
            run.save(epoch + 1, means, rate)
            if on_epoch is not None:
                on_epoch(epoch + 1, means)
    seconds = time.monotonic() - started
    rate = images_seen / seconds if images_seen else 0.0
    if config.ema_decay:
        network.load_state_dict(average.weights)
    network.eval()
    stood = first == config.epochs
    return TrainResult(run.checkpoint, config.epochs, rate, seconds, run.skipped, stood)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, clip: float) -> bool:
    """Take one optimiser step; return False, changing nothing, if the loss is not finite."""
    optimizer.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(loss.total)):
        return False
    loss.total.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
    if not bool(torch.isfinite(norm)):
        return False
    optimizer.step()
    return True


class _Run:
    """The files of one training run."""

    def __init__(
        self,
        folder: Path,
        network: Detector,
        optimizer: torch.optim.Optimizer,
        average: Averaged,
        config: TrainConfig,
        data: DetectionSet,
    ) -> None:
        self.checkpoint = folder / "weights.safetensors"
        self.state = folder / "state.pt"
        self.network, self.optimizer, self.average = network, optimizer, average
        self.config, self.data = config, data
        self.skipped = 0
        self.history: list[dict[str, float]] = []

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {
            "config": json.loads(json.dumps(asdict(self.config))),
            "names": list(self.data.names),
            "images": len(self.data.records),
            "what": self._description(),
        }

    def _description(self) -> str:
        if isinstance(self.network, Supernet):
            return self.network.space.to_json()
        return self.network.architecture.to_json()

    def save(self, epoch: int, losses: dict[str, float], rate: float) -> None:
        """Write the averaged weights and the state to resume from."""
        self.history.append({"epoch": epoch, **losses})
        facts = {
            "data": self.data.root.name,
            "split": self.data.split,
            "images": len(self.data.records),
            "images_per_second": round(rate, 2),
            "skipped_steps": self.skipped,
            "history": self.history,
            "config": asdict(self.config),
            "torch": torch.__version__,
        }
        if isinstance(self.network, Supernet):
            facts |= self.network.facts()
        info = CheckpointInfo(
            kind="supernet" if isinstance(self.network, Supernet) else "detector",
            description=self._description(),
            names=self.data.names,
            epoch=epoch,
            epochs=self.config.epochs,
            facts=facts,
        )
        raw = self.network.state_dict()
        save_checkpoint(
            self.checkpoint, self.average.weights if self.config.ema_decay else raw, info
        )
        state = {
            "fingerprint": self.fingerprint(),
            "epoch": epoch,
            "network": raw,
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "skipped": self.skipped,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.state, buffer.getvalue())

    def first_epoch(self, *, resume: bool, restart: bool) -> int:
        """Load the last finished epoch, if it is to be used; return how many are finished."""
        if restart or not self.state.exists():
            return 0
        try:
            state = torch.load(self.state, weights_only=True)
            fingerprint = state["fingerprint"]
        except Exception as error:
            raise CheckpointError(
                f"{self.state} is truncated ({type(error).__name__}): delete it to train afresh"
            ) from None
        if fingerprint != self.fingerprint():
            raise CheckpointError(
                f"{self.state} belongs to other settings, data or architecture: "
                "--restart replaces it, another --out keeps it"
            )
        if not resume and state["epoch"] < self.config.epochs:
            raise CheckpointError(
                f"{self.state} stands at epoch {state['epoch']} of {self.config.epochs}: "
                "--resume goes on, --restart begins again"
            )
        self.network.load_state_dict(state["network"])
        self.average.weights = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.skipped = state["history"], state["skipped"]
        return int(state["epoch"])
