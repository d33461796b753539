"""The training loop of detectors and supernets, readable top to bottom.

Every epoch draws its own random numbers from (seed, epoch), so a run that was killed and resumed
at its last finished epoch goes on exactly as if it had not been interrupted.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .augment import AugmentConfig, augment
from .coco import DetectionSet, Record
from .detector import Detector
from .distributed import Group, joined
from .errors import DataError, HeatError, UserError
from .letterbox import read_image
from .loss import Target, detection_loss
from .progress import Progress
from .run_files import RunFiles
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
    """Images per pass, over all processes."""
    accumulate: int = 1
    """Passes whose gradients make one step."""
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
        if self.accumulate < 1:
            raise UserError(f"--accumulate {self.accumulate}: at least 1")
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
    leads: bool = True
    """Whether this process, of several, is the one that writes."""

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
    data: DetectionSet,
    input_hw: tuple[int, int],
    config: TrainConfig,
    epoch: int,
    group: Group | None = None,
) -> Iterator[tuple[Tensor, list[Target]]]:
    """Yield this process's share of the augmented batches of one epoch, in a random order.

    Order and augmentation follow from (seed, epoch, image) alone, so that any number of processes
    sees the same batches.
    """
    group = group or Group()
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data.records))
    starts = batch_starts(len(order), config.batch_size)
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        images, targets = [], []
        for record_index in order[start:stop][group.rank :: group.world]:
            rng = np.random.default_rng([config.seed, epoch, int(record_index)])
            image, target = load_sample(data.records[record_index], input_hw, config, rng)
            images.append(image.to(group.device))
            targets.append(
                Target(target.boxes_xyxy.to(group.device), target.labels.to(group.device))
            )
        yield torch.stack(images), targets


def batch_starts(num_images: int, batch_size: int) -> list[int]:
    """Return where each batch begins; a last one of less than half joins the batch before it.

    BatchNorm cannot train on a batch of one, and every process needs a share.
    """
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] < max(2, batch_size / 2):
        starts.pop()
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
    lost by accident. Under `torchrun` the processes share every batch; a run may be resumed on
    another number of them. `on_epoch` receives the epoch and its mean losses. Raises `HeatError`
    when the loss stays not finite.
    """
    with joined() as group:
        if config.batch_size < 2 * group.world:
            raise UserError(
                f"--batch-size {config.batch_size}: at least two images for each of "
                f"{group.world} processes"
            )
        network.to(group.device)
        network.set_drop_path(config.drop_path)
        optimizer = torch.optim.AdamW(
            parameter_groups(network, config), lr=config.learning_rate, betas=(0.9, 0.999)
        )
        average = Averaged(network, config.ema_decay)
        run = RunFiles(folder, network, optimizer, average, config, data)
        first = run.first_epoch(resume=resume, restart=restart)
        group.wait()  # nobody writes before everybody has read
        return _Fit(network, data, config, optimizer, average, run, group).train(first, on_epoch)


class _Fit:
    """The loop itself."""

    def __init__(
        self,
        network: Detector,
        data: DetectionSet,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        average: Averaged,
        run: RunFiles,
        group: Group,
    ) -> None:
        self.network, self.data, self.config = network, data, config
        self.optimizer, self.average, self.run, self.group = optimizer, average, run, group
        self.model = group.wrap(network)
        self.passes = len(batch_starts(len(data.records), config.batch_size))
        self.steps_an_epoch = math.ceil(self.passes / config.accumulate)
        self.autocast = uses_bf16(config.precision)
        self.bad = 0

    def train(
        self, first: int, on_epoch: Callable[[int, dict[str, float]], None] | None
    ) -> TrainResult:
        """Train from an epoch to the last."""
        config, run = self.config, self.run
        started = time.monotonic()
        images = 0
        shown = Progress("train", config.epochs * self.passes, done=first * self.passes)
        with shown if self.group.leads else nullcontext() as bar:
            for epoch in range(first, config.epochs):
                means = self.epoch(epoch, bar)
                images += len(self.data.records)
                if self.group.leads:
                    run.save(epoch + 1, means, images / (time.monotonic() - started))
                self.group.wait()
                if on_epoch is not None:
                    on_epoch(epoch + 1, means)
        seconds = time.monotonic() - started
        if config.ema_decay:
            self.network.load_state_dict(self.average.weights)
        self.network.eval()
        return TrainResult(
            run.checkpoint,
            config.epochs,
            images / seconds if images else 0.0,
            seconds,
            run.skipped,
            first == config.epochs,
            self.group.leads,
        )

    def epoch(self, epoch: int, bar: Progress | None) -> dict[str, float]:
        """Train one epoch and return its mean losses."""
        config, network = self.config, self.network
        torch.manual_seed((config.seed * 100_003 + epoch) * 1009 + self.group.rank)
        network.train()
        if isinstance(network, Supernet):
            network.start_epoch(epoch, config.epochs)
        sums = {"classes": 0.0, "boxes": 0.0}
        hw = network.architecture.input_size
        source = batches(self.data, hw, config, epoch, self.group)
        for number in range(self.steps_an_epoch):
            step = epoch * self.steps_an_epoch + number
            for param_group in self.optimizer.param_groups:
                factor = rate_factor(step, config.epochs * self.steps_an_epoch, config)
                param_group["lr"] = param_group["peak"] * factor
            losses = self.step(list(islice(source, config.accumulate)))
            if losses is None:
                self._skip(epoch)
                continue
            self.bad = 0
            self.average.update(network, step)
            for key, value in losses.items():
                sums[key] += value
            if bar is not None:
                share = sum(losses.values()) / config.accumulate
                bar.advance(f"epoch {epoch + 1} loss {share:.3f}", config.accumulate)
        return {key: value / self.passes for key, value in sums.items()}

    def step(self, parts: Sequence[tuple[Tensor, list[Target]]]) -> dict[str, float] | None:
        """Take one step on some batches; None, changing nothing, if a loss is not finite.

        All processes take it or none does.
        """
        network = self.network
        statistics = [buffer.clone() for buffer in network.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        sums = {"classes": 0.0, "boxes": 0.0}
        fine = True
        for index, (images, targets) in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self._alone():
                device = images.device.type
                with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
                    logits, deltas = self.model(images)
                loss = detection_loss(logits.float(), deltas.float(), targets, network.decode)
                fine = self.group.all_agree(bool(torch.isfinite(loss.total)))
                if not fine:
                    break
                (loss.total / len(parts)).backward()  # type: ignore[no-untyped-call]
            sums["classes"] += self.group.mean(loss.classes)
            sums["boxes"] += self.group.mean(loss.boxes)
        if fine:
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.clip_norm)
            fine = self.group.all_agree(bool(torch.isfinite(norm)))
        if not fine:
            for buffer, before in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(before)  # the forward pass may have spoilt BatchNorm's
            return None
        self.optimizer.step()
        return sums

    def _alone(self) -> AbstractContextManager[None]:
        """Keep gradients to oneself until the last batch of a step."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _skip(self, epoch: int) -> None:
        """Count a step without a finite loss; too many in a row are an error."""
        self.bad, self.run.skipped = self.bad + 1, self.run.skipped + 1
        if self.bad == MAX_BAD_STEPS:
            raise HeatError(
                f"{self.bad} steps in a row without a finite loss in epoch {epoch + 1}: lower "
                f"--learning-rate {self.config.learning_rate}; the last good epoch stands in "
                f"{self.run.checkpoint.parent}"
            )
