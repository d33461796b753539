"""The training loop of detectors and supernets, readable top to bottom.

Data and noise of a step follow from (seed, epoch, step), so a run that was killed at any moment
and resumed goes on exactly as if it had not been interrupted.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .detection_set import DetectionSet, check_trainable
from .distributed import Group, joined
from .early_stop import report
from .errors import HeatError, UserError
from .feed import batch_starts, default_workers
from .memory import is_out_of_memory, memory_mb, what_fits
from .network import Network
from .optimise import Averaged, autocast_type, parameter_groups, rate_factor
from .progress import Progress
from .recipes import TrainConfig
from .run_files import RunFiles
from .running import Judge, Running, TrainResult
from .task import Batch, DetectionTask, Task, total
from .threads import ThreadPlan, planned

__all__ = ["Judge", "Running", "TrainResult", "fit", "run_task"]

MAX_BAD_STEPS = 20
"""Consecutive steps without a finite loss after which training stops."""
SAVE_EVERY_S = 300.0
"""Long epochs are saved in between."""


def fit(
    network: Network,
    data: DetectionSet,
    config: TrainConfig,
    folder: Path,
    running: Running | None = None,
    *,
    start: Mapping[str, str] | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train a network or a supernet; see `run_task`."""
    check_trainable(data)
    network.set_drop_path(config.drop_path)
    task = DetectionTask(network, data)
    return run_task(network, task, config, folder, running, start=start, on_epoch=on_epoch)


def run_task(
    network: nn.Module,
    task: Task,
    config: TrainConfig,
    folder: Path,
    running: Running | None = None,
    *,
    start: Mapping[str, str] | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train and leave `weights.safetensors` in `folder`; `state.pt` there allows to resume.

    `best.safetensors` holds the epoch of the highest AP, where one is computed. All files are
    replaced after every epoch, each atomically. A finished run of the same settings and data is
    kept as it is; an unfinished or different one needs `resume` or `restart`, so that nothing is
    lost by accident. Under `torchrun` the processes share every batch; a run may be resumed on
    another number of them. `start` gives digests of the files that the network's weights come
    from: others are another run. `on_epoch` receives the epoch and its mean losses. Raises
    `HeatError` when the loss stays not finite, when memory does not suffice, or when a loading
    process dies.
    """
    running = running or Running()
    with joined() as group, planned(running.threads) as threads:
        # A compiled network has its number of threads built in.
        threads.adapts &= group.world == 1 and group.device.type == "cpu" and not running.compile
        if config.batch_size < 2 * group.world:
            raise UserError(
                f"--batch-size {config.batch_size}: at least two images for each of "
                f"{group.world} processes"
            )
        # Convolutions are quicker channels last: by 18 % in bf16 on a CPU with AVX512.
        network.to(group.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            parameter_groups(network, config),
            lr=config.learning_rate,
            betas=(0.9, 0.999),
            fused=True,
        )
        average = Averaged(network, config.ema_decay)
        run = RunFiles(
            folder,
            network,
            optimizer,
            average,
            config,
            task,
            start=start,
            writes=group.leads,
            tensorboard=running.tensorboard,
        )
        try:
            run.load(resume=running.resume, restart=running.restart, patience=running.patience)
            group.wait()  # nobody writes before everybody has read
            loop = _Fit(network, task, config, optimizer, average, run, group, running, threads)
            return loop.train(on_epoch)
        finally:
            run.close()


class _Fit:
    """The loop itself."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        average: Averaged,
        run: RunFiles,
        group: Group,
        running: Running,
        threads: ThreadPlan,
    ) -> None:
        self.network, self.task, self.config = network, task, config
        self.optimizer, self.average, self.run, self.group = optimizer, average, run, group
        self.running, self.threads = running, threads
        self.model = group.wrap(network)
        if running.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        self.passes = len(batch_starts(task.num_images, config.batch_size))
        self.steps_an_epoch = math.ceil(self.passes / config.accumulate)
        self.type = autocast_type(config.precision, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.type is torch.float16)
        self.bad = 0
        self.started = time.monotonic()
        self.images = 0

    def train(self, on_epoch: Callable[[int, dict[str, float]], None] | None) -> TrainResult:
        """Train from where the run stands to the last epoch."""
        config, run = self.config, self.run
        first = run.epoch
        stood = run.finished
        if not stood:
            self.threads.start(run.threads)
            self._record_threads(shown=self.threads.now < self.threads.cores)
        done = first * self.passes + run.steps * config.accumulate
        shown = Progress("train", config.epochs * self.passes, done=done)
        with shown if self.group.leads else nullcontext() as bar:
            source = self._feed(first)
            for epoch in range(first, first if stood else config.epochs):
                means = self.epoch(epoch, source, bar)
                self.images += self.task.num_images
                facts = means | self._pace() | self._judged(epoch)
                run.finish(epoch + 1, facts, self.running.patience)
                stopped = not self.group.all_agree(run.stopped is None)  # one process has scored
                if on_epoch is not None:
                    on_epoch(epoch + 1, means)
                if stopped:
                    break
        if run.stopped is not None and self.group.leads:
            print(f"training: {report(run.history, config.epochs)}", file=sys.stderr, flush=True)
        seconds = time.monotonic() - self.started
        if config.ema_decay:
            self.network.load_state_dict(self.average.weights)
        self.network.eval()
        return TrainResult(
            checkpoint=run.checkpoint,
            epochs=run.epoch,
            planned_epochs=config.epochs,
            stopped_early=run.stopped is not None,
            images_per_second=self.images / seconds if self.images else 0.0,
            seconds=seconds,
            skipped_steps=run.skipped,
            stood=stood,
            leads=self.group.leads,
        )

    def epoch(self, epoch: int, source: Iterator[Batch], bar: Progress | None) -> dict[str, float]:
        """Train an epoch, or what is left of it, and return its mean losses."""
        config, network, run = self.config, self.network, self.run
        network.train()
        self.task.start_epoch(epoch, config.epochs)
        saved = time.monotonic()
        for number in range(run.steps, self.steps_an_epoch):
            step = epoch * self.steps_an_epoch + number
            torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + self.group.rank)
            factor = rate_factor(step, config.epochs * self.steps_an_epoch, config)
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = param_group["peak"] * factor
            passes = min(config.accumulate, self.passes - number * config.accumulate)
            losses = self.step(list(islice(source, passes)))
            run.steps = number + 1
            if losses is None:
                self._skip(epoch)
                continue
            self.bad = 0
            self.average.update(network, step)
            for key, value in losses.items():
                run.sums[key] = run.sums.get(key, 0.0) + value
            run.counted += passes
            if bar is not None:
                loss, rate = sum(losses.values()) / passes, config.learning_rate * factor
                note = f"epoch {epoch + 1} loss {loss:.3f} lr {rate:.1e} {memory_mb():.0f} MB"
                bar.advance(note, passes)
            replanned = self.threads.changed()
            if replanned:
                self._record_threads(shown=True)
            if replanned or time.monotonic() - saved > SAVE_EVERY_S:
                run.save_state()
                saved = time.monotonic()
        return {key: value / run.counted for key, value in run.sums.items()}

    def _record_threads(self, *, shown: bool) -> None:
        """Keep the number of threads in the run's state and log; a resumed run uses the same."""
        if not self.threads.adapts:
            return
        self.run.threads = self.threads.now
        load = round(self.threads.other_load, 2)
        self.run.event("threads", threads=self.threads.now, other_load=load)
        if shown:
            print(f"threads: {self.threads}", file=sys.stderr, flush=True)

    def step(self, parts: Sequence[Batch]) -> dict[str, float] | None:
        """Take one step on some batches; None, changing nothing, if a loss is not finite.

        All processes take it or none does.
        """
        try:
            return self._step(parts)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        images, targets = parts[0]

        def gradients(size: int) -> None:
            total(self._loss(images[:size], targets[:size])).backward()  # type: ignore[no-untyped-call]

        asked = self.config.batch_size
        raise HeatError(what_fits(gradients, asked, len(images), self.group.world))

    def _step(self, parts: Sequence[Batch]) -> dict[str, float] | None:
        network = self.network
        statistics = [buffer.clone() for buffer in network.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        fine = True
        for index, (images, targets) in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self._alone():
                terms = self._loss(images, targets)
                loss = total(terms)
                fine = self.group.all_agree(bool(torch.isfinite(loss)))
                if not fine:
                    break
                self.scaler.scale(loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + self.group.mean(value)
        if fine:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.clip_norm)
            fine = self.group.all_agree(bool(torch.isfinite(norm)))
            if fine:
                self.scaler.step(self.optimizer)
            self.scaler.update()
        if not fine:
            for buffer, before in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(before)  # the forward pass may have spoilt BatchNorm's
            return None
        return sums

    def _loss(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        device = images.device.type
        with torch.autocast(device, self.type, enabled=self.type is not None):
            outputs = self.model(images)
        return self.task.loss(outputs, targets, self.config)

    def _feed(self, first: int) -> Iterator[Batch]:
        workers = self.running.workers
        samples = (self.config.epochs - first) * self.task.num_images
        return self.task.feed(
            self.config,
            range(first, self.config.epochs),
            self.group,
            default_workers(self.group, samples) if workers is None else workers,
            self.run.steps * self.config.accumulate,
        )

    def _judged(self, epoch: int) -> dict[str, float]:
        """Return scores of the averaged weights, where it is time for them."""
        judge, every = self.running.judge, self.running.judge_every
        if judge is None or not every or not self.group.leads:
            return {}
        if (epoch + 1) % every and epoch + 1 < self.config.epochs:
            return {}
        network = copy.deepcopy(self.network)
        if self.config.ema_decay:
            network.load_state_dict(self.average.weights)
        return dict(judge(network.eval()))

    def _pace(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        return {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round(self.images / seconds, 2),
            "memory_mb": round(memory_mb()),
        }

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
