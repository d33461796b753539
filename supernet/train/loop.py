"""The training loop of detectors and supernets, readable top to bottom.

Data and noise of a step follow from (seed, epoch, step), so a run that was killed at any moment
and resumed goes on exactly as if it had not been interrupted.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from ..data.detection_set import DetectionSet, check_trainable
from ..errors import HeatError, UserError
from ..network import Network
from ..progress import Progress
from .deadline import Budget, Deadline
from .distributed import Group, joined
from .early_stop import stop_line
from .feed import batch_starts, default_workers
from .memory import memory_mb
from .optimise import Averaged, parameter_groups, rate_factor
from .recipes import TrainConfig
from .run_files import RunFiles
from .running import Running, TrainResult
from .stepper import Stepper
from .task import Batch, DetectionTask, Task
from .threads import ThreadPlan, planned

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
        self.stepper = Stepper(network, task, config, optimizer, group, compiled=running.compile)
        self.passes = len(batch_starts(task.num_images, config.batch_size))
        self.steps_an_epoch = math.ceil(self.passes / config.accumulate)
        self.bad = 0
        self.deadline = Deadline(running.budget or Budget(math.inf), self.steps_an_epoch)
        self.warned = False
        """Whether it was reported that even the fewest epochs end late."""
        self.started = time.monotonic()
        self.images = 0

    def train(self, on_epoch: Callable[[int, dict[str, float]], None] | None) -> TrainResult:
        """Train from where the run stands to the last epoch."""
        config, run = self.config, self.run
        stood = run.finished
        if not stood:
            self.threads.start(run.threads)
            self._record_threads(shown=self.threads.now < self.threads.cores)
        done = run.epoch * self.passes + run.steps * config.accumulate
        shown = Progress("train", run.schedule.epochs * self.passes, done=done)
        with shown if self.group.leads else nullcontext() as bar:
            source = self._feed()
            while not run.finished:
                means = self.epoch(run.epoch, source, bar)
                self.images += self.task.num_images
                facts = means | self._pace() | self._judged(run.epoch)
                run.finish(run.epoch + 1, facts, self.running.patience)
                if not self.group.all_agree(run.stopped is None):  # one process has scored
                    run.stopped = run.epoch
                if on_epoch is not None:
                    on_epoch(run.epoch, means)
                if not run.finished and self._shortened(bar):
                    source = self._feed()
        if run.stopped is not None and self.group.leads:
            print(f"training: {stop_line(run.history, config.epochs)}", file=sys.stderr, flush=True)
        seconds = time.monotonic() - self.started
        if config.ema_decay:
            self.network.load_state_dict(self.average.weights)
        self.network.eval()
        return TrainResult(
            checkpoint=run.checkpoint,
            epochs=run.epoch,
            planned_epochs=config.epochs,
            shortened_after=run.schedule.shortened_after,
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
        schedule, steps = run.schedule, run.schedule.planned * self.steps_an_epoch
        network.train()
        self.task.start_epoch(schedule.epoch(epoch), schedule.planned)
        self.deadline.start_epoch()
        saved = time.monotonic()
        for number in range(run.steps, self.steps_an_epoch):
            step = epoch * self.steps_an_epoch + number
            torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + self.group.rank)
            factor = rate_factor(schedule.step(step, self.steps_an_epoch), steps, config)
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = param_group["peak"] * factor
            passes = min(config.accumulate, self.passes - number * config.accumulate)
            losses = self.step(list(islice(source, passes)))
            self.deadline.step()
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
        """Take one step on some batches; see `Stepper.step`."""
        return self.stepper.step(parts)

    def _feed(self) -> Iterator[Batch]:
        """Yield the batches from the next step of the run to its last."""
        run, workers = self.run, self.running.workers
        epochs = range(run.epoch, run.schedule.epochs)
        samples = len(epochs) * self.task.num_images
        return self.task.feed(
            run.schedule.config(self.config),
            epochs,
            self.group,
            default_workers(self.group, samples) if workers is None else workers,
            run.steps * self.config.accumulate,
        )

    def _shortened(self, bar: Progress | None) -> bool:
        """Plan fewer epochs where those that are left take longer than the budget allows."""
        if self.running.budget is None:
            return False
        run, deadline, before = self.run, self.deadline, self.run.schedule.epochs
        after = self.group.leaders(deadline.fitting(run.epoch, before))
        if after < before or (deadline.late_s(run.epoch, before) >= 1 and not self.warned):
            self.warned = True
            if self.group.leads:
                line = deadline.describe(run.epoch, before, after)
                print(f"training: {line}", file=sys.stderr, flush=True)
        if after == before:
            return False
        run.shorten(after, step_s=deadline.step_s, left_s=deadline.left_s)
        if bar is not None:
            bar.total = after * self.passes
        return True

    def _judged(self, epoch: int) -> dict[str, float]:
        """Return scores of the averaged weights, where it is time for them."""
        judge, every = self.running.judge, self.running.judge_every
        if judge is None or not every or not self.group.leads:
            return {}
        if (epoch + 1) % every and epoch + 1 < self.run.schedule.epochs:
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

    def _skip(self, epoch: int) -> None:
        """Count a step without a finite loss; too many in a row are an error."""
        self.bad, self.run.skipped = self.bad + 1, self.run.skipped + 1
        if self.bad == MAX_BAD_STEPS:
            raise HeatError(
                f"{self.bad} steps in a row without a finite loss in epoch {epoch + 1}: lower "
                f"--learning-rate {self.config.learning_rate}; the last good epoch stands in "
                f"{self.run.checkpoint.parent}"
            )
