"""The training loop of detectors and supernets, readable top to bottom.

Data and noise of a step follow from (seed, epoch, step), so a run that was killed at any moment
and resumed ends with the same weights as one that was not interrupted.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ..data.detection_set import DetectionSet, check_trainable
from ..errors import HeatError, UserError
from ..network import Network
from ..progress import Progress
from .deadline import Budget, Deadline
from .distributed import Group, joined, seed_step
from .early_stop import stop_line
from .feed import batch_starts, default_workers
from .memory import memory_mb
from .not_learning import signs
from .optimise import Averaged, make_optimizer, make_scaler, rate_factor
from .recipes import TrainConfig
from .run_files import RunFiles
from .running import Running, TrainResult
from .stepper import Stepper
from .task import Batch, Task, task_of
from .threads import ThreadPlan, planned

MAX_BAD_STEPS = 20
"""Consecutive steps without a finite loss after which training stops."""
SAVE_EVERY_S = 300.0
"""Seconds after which the state is saved within an epoch."""

OnEpoch = Callable[[int, dict[str, float]], None]
"""Receives the number of finished epochs and the mean losses of the last one."""


def fit(
    network: Network,
    data: DetectionSet,
    config: TrainConfig,
    folder: Path,
    running: Running | None = None,
    *,
    start: Mapping[str, str] | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a network or a supernet to detect the objects of `data`; see `run_task`."""
    check_trainable(data)
    network.set_drop_path(config.drop_path)
    task = task_of(network, data)
    return run_task(task, config, folder, running, start=start, on_epoch=on_epoch)


def run_task(
    task: Task,
    config: TrainConfig,
    folder: Path,
    running: Running | None = None,
    *,
    start: Mapping[str, str] | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train and leave `weights.safetensors` in `folder`; with `state.pt` there it can be resumed.

    `best.safetensors` holds the epoch of the highest AP, where one is computed. All files are
    replaced after every epoch, each atomically. A finished run of the same settings and data is
    kept as it is; an unfinished or different one needs `resume` or `restart`, so that nothing is
    lost by accident. Under `torchrun` the processes share every batch; a run may be resumed on
    another number of them. `start` gives digests of the files that the network's weights come
    from: others are another run. Raises `HeatError` when the loss stays not finite, when memory
    does not suffice, or when a loading process dies.
    """
    running = running or Running()
    with joined() as group, planned(running.threads) as threads:
        # torch.compile fixes the number of threads.
        threads.adapts &= group.world == 1 and group.device.type == "cpu" and not running.compile
        if config.batch_size < 2 * group.world:
            raise UserError(
                f"--batch-size {config.batch_size}: at least two images for each of "
                f"{group.world} processes"
            )
        if task.num_images < group.world:
            raise UserError(
                f"{task.num_images} training images for {group.world} processes: each needs one, "
                f"--nproc-per-node {task.num_images} at most"
            )
        # Convolutions are quicker channels last: by 18 % in bf16 on a CPU with AVX512.
        task.model.to(group.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(task.parameter_groups(config), config, group.device)
        average = Averaged(task.network, config.ema_decay)
        scaler = make_scaler(config.precision, group.device)
        task.begin(average, group)
        run = RunFiles(
            folder,
            task,
            config,
            optimizer,
            average,
            scaler=scaler,
            start=start,
            judged_on=running.judged_on,
            writes=group.leads,
            tensorboard=running.tensorboard,
        )
        try:
            run.load(resume=running.resume, restart=running.restart, patience=running.patience)
            group.wait()  # nobody writes before everybody has read
            stepper = Stepper(task, config, optimizer, scaler, group, compiled=running.compile)
            return _train(Loop.of(run, stepper, running, threads), on_epoch)
        finally:
            run.close()


@dataclass(frozen=True, slots=True)
class Loop:
    """What the functions below work with; the progress of the training is in `run`."""

    run: RunFiles
    stepper: Stepper
    running: Running
    threads: ThreadPlan
    batches_an_epoch: int
    steps_an_epoch: int
    deadline: Deadline
    started: float
    """Of `time.monotonic`."""

    @classmethod
    def of(cls, run: RunFiles, stepper: Stepper, running: Running, threads: ThreadPlan) -> "Loop":
        """Start the clock of a run."""
        batches = len(batch_starts(run.task.num_images, run.config.batch_size))
        steps = math.ceil(batches / run.config.accumulate)
        deadline = Deadline(running.budget or Budget(math.inf), steps)
        return cls(run, stepper, running, threads, batches, steps, deadline, time.monotonic())

    @property
    def group(self) -> Group:
        """The processes that train together."""
        return self.stepper.group


def _train(loop: Loop, on_epoch: OnEpoch | None) -> TrainResult:
    """Train from the next epoch of the run to its last."""
    run, config, group = loop.run, loop.run.config, loop.group
    finished_before = run.finished
    if not finished_before:
        loop.threads.start(run.threads)
        _record_threads(loop, shown=loop.threads.now < loop.threads.cores)
    begun = min(run.steps * config.accumulate, loop.batches_an_epoch)
    # Those of the epoch's first batches were trained before: they say nothing of this speed.
    images = -round(begun * run.task.num_images / loop.batches_an_epoch)
    done = run.epoch * loop.batches_an_epoch + begun
    shown = Progress("train", run.schedule.epochs * loop.batches_an_epoch, done=done)
    with shown if group.leads else nullcontext() as bar:
        batches = _batches(loop)
        while not run.finished:
            means = train_epoch(loop, batches, bar)
            images += run.task.num_images
            facts = means | _pace(loop, images) | _scores(loop)
            run.finish(run.epoch + 1, facts, loop.running.patience)
            _say_if_not_learning(loop, means)
            if not group.all_agree(run.stopped is None):  # only the leading process has scores
                run.stopped = run.epoch
            if on_epoch is not None:
                on_epoch(run.epoch, means)
            if not run.finished and _shortened(loop, bar):
                batches = _batches(loop)
    if run.stopped is not None and group.leads:
        print(f"training: {stop_line(run.history, config.epochs)}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - loop.started
    if config.ema_decay:
        run.network.load_state_dict(run.average.weights)
    run.network.eval()
    return TrainResult(
        checkpoint=run.checkpoint,
        epochs=run.epoch,
        planned_epochs=config.epochs,
        shortened_after=run.schedule.shortened_after,
        stopped_early=run.stopped is not None,
        images_per_second=images / seconds if images else run.last_rate,
        seconds=seconds,
        skipped_steps=run.skipped,
        finished_before=finished_before,
        run=run.identity,
        leads=group.leads,
    )


def train_epoch(loop: Loop, batches: Iterator[Batch], bar: Progress | None) -> dict[str, float]:
    """Train the next epoch, or what is left of it, and return its mean losses."""
    run, config, epoch, schedule = loop.run, loop.run.config, loop.run.epoch, loop.run.schedule
    run.network.train()
    run.task.start_epoch(schedule.epoch(epoch), schedule.planned)
    loop.deadline.start_epoch()
    saved = time.monotonic()
    for number in range(run.steps, loop.steps_an_epoch):
        step = epoch * loop.steps_an_epoch + number
        seed_step(config.seed, step, loop.group.rank)
        factor = _set_learning_rate(loop, step)
        accumulated = min(config.accumulate, loop.batches_an_epoch - number * config.accumulate)
        losses = loop.stepper.step(list(islice(batches, accumulated)))
        loop.deadline.step()
        run.steps = number + 1
        if losses is None:
            _skip(loop)
            continue
        run.average.update(run.network, step)
        run.add(losses, accumulated)
        if bar is not None:
            loss, rate = sum(losses.values()) / accumulated, config.learning_rate * factor
            note = f"epoch {epoch + 1} loss {loss:.3f} lr {rate:.1e} {memory_mb():.0f} MB"
            bar.advance(note, accumulated)
        replanned = loop.threads.changed()
        if replanned:
            _record_threads(loop, shown=True)
        if replanned or time.monotonic() - saved > SAVE_EVERY_S:
            run.save_state()
            saved = time.monotonic()
    return run.means()


def _say_if_not_learning(loop: Loop, terms: Mapping[str, float]) -> None:
    """Print and log what shows, after a third of the epochs, that nothing is learnt."""
    run = loop.run
    if loop.group.leads:
        for text in signs(run.history, terms, run.schedule.epochs):
            print(f"warning: after {run.epoch} epochs {text}", file=sys.stderr, flush=True)
            run.event("not learning", epoch=run.epoch, sign=text)


def _batches(loop: Loop) -> Iterator[Batch]:
    """Yield the batches from the next step of the run to its last."""
    run, workers = loop.run, loop.running.workers
    epochs = range(run.epoch, run.schedule.epochs)
    samples = len(epochs) * run.task.num_images
    return run.task.feed(
        run.schedule.config(run.config),
        epochs,
        loop.group,
        default_workers(loop.group, samples) if workers is None else workers,
        run.steps * run.config.accumulate,
    )


def _set_learning_rate(loop: Loop, step: int) -> float:
    """Set the learning rates of a step, and return their factor relative to the peaks."""
    schedule, steps = loop.run.schedule, loop.run.schedule.planned * loop.steps_an_epoch
    factor = rate_factor(schedule.step(step, loop.steps_an_epoch), steps, loop.run.config)
    for group in loop.run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def _skip(loop: Loop) -> None:
    """Count a step without a finite loss; too many in a row are an error."""
    run, bad_steps = loop.run, loop.stepper.bad_steps
    run.skipped += 1
    if bad_steps == MAX_BAD_STEPS:
        kept = f"; the last good epoch is kept in {run.checkpoint.parent}" if run.epoch else ""
        raise HeatError(
            f"{bad_steps} steps in a row without a finite loss in epoch {run.epoch + 1}: lower "
            f"--learning-rate {run.config.learning_rate}{kept}"
        )


def _record_threads(loop: Loop, *, shown: bool) -> None:
    """Record the number of threads in the run's state and log; a resumed run uses the same."""
    run, threads = loop.run, loop.threads
    if not threads.adapts:
        return
    run.threads = threads.now
    run.event("threads", threads=threads.now, other_load=round(threads.other_load, 2))
    if shown:
        print(f"threads: {threads}", file=sys.stderr, flush=True)


def _pace(loop: Loop, images: int) -> dict[str, float]:
    """Return learning rate, speed over the `images` trained so far, and peak memory."""
    seconds = time.monotonic() - loop.started
    return {
        "learning_rate": loop.run.optimizer.param_groups[0]["lr"],
        "images_per_second": round(images / seconds, 2),
        "memory_mb": round(memory_mb()),
    }


def _scores(loop: Loop) -> dict[str, float]:
    """Return scores of the averaged weights after an epoch, where they are due."""
    run, judge, every = loop.run, loop.running.judge, loop.running.judge_every
    if judge is None or not every or not loop.group.leads:
        return {}
    if (run.epoch + 1) % every and run.epoch + 1 < run.schedule.epochs:
        return {}
    network = copy.deepcopy(run.network)
    if run.config.ema_decay:
        network.load_state_dict(run.average.weights)
    return dict(judge(network.eval()))


def _shortened(loop: Loop, bar: Progress | None) -> bool:
    """Plan fewer epochs where the remaining ones take longer than the budget allows."""
    if loop.running.budget is None:
        return False
    run, deadline, before = loop.run, loop.deadline, loop.run.schedule.epochs
    after = loop.group.leaders(deadline.fitting(run.epoch, before))
    if deadline.worth_reporting(run.epoch, before, after) and loop.group.leads:
        line = deadline.describe(run.epoch, before, after)
        print(f"training: {line}", file=sys.stderr, flush=True)
    if after == before:
        return False
    run.shorten(after, step_s=deadline.step_s, left_s=deadline.left_s)
    if bar is not None:
        bar.total = after * loop.batches_an_epoch
    return True
