"""The files of a training run: averaged weights, the state to resume from, curves, events."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

from ..atomic import append_line, write_bytes, write_text
from ..checkpoint import WEIGHTS, CheckpointInfo, EpochRow, save_checkpoint
from ..errors import CheckpointError, UserError, wrong_format
from .early_stop import best_epoch, epochs_without_gain, forget_scores
from .fingerprint import Fingerprint, differences
from .optimise import Averaged
from .recipes import TrainConfig
from .schedule import Schedule
from .task import Task

STATE_FORMAT = 1
"""History of `state.pt`: 1, the first."""

STATE, BEST, EVENTS = "state.pt", "best.safetensors", "events.jsonl"


def forget(folder: Path) -> None:
    """Remove what a run would go on from, or one killed before it saves would go on with that."""
    for name in (STATE, BEST, EVENTS):
        (folder / name).unlink(missing_ok=True)


class RunFiles:
    """The files of one training run, and how far it has come."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        average: Averaged,
        *,
        scaler: torch.amp.GradScaler | None = None,
        start: Mapping[str, str] | None = None,
        judged_on: str = "",
        writes: bool = True,
        tensorboard: bool = False,
    ) -> None:
        """Name the files in `folder`; nothing is read or written yet.

        `start` gives digests of the files that the network's weights come from, `judged_on` that
        of what AP is computed on.
        Of several processes all count epochs and steps, and one `writes`.
        """
        self.writes = writes
        self.checkpoint = folder / WEIGHTS
        self.best = folder / BEST
        """Weights of the epoch with the highest AP so far; only where AP is computed."""
        self.state = folder / STATE
        self.metrics = folder / "metrics.csv"
        self.events = folder / EVENTS
        self.network, self.optimizer, self.average = task.network, optimizer, average
        self.scaler = scaler
        self.config, self.task = config, task
        self.start = dict(start or {})
        self.judged_on = judged_on
        self.board = _board(folder) if tensorboard and writes else None
        self.epoch = 0
        """Epochs finished."""
        self.steps = 0
        """Steps done of the next one."""
        self.sums: dict[str, float] = {}
        """Sums of the losses of those steps, where they were finite."""
        self.counted = 0
        """Batches in those sums."""
        self.begun: dict[str, int] = {}
        """Batches of the epoch before a term of the loss began, by its name."""
        self.skipped = 0
        """Steps without a finite loss, of the whole run."""
        self.threads: int | None = None
        """Threads of the next step; None where nothing was recorded."""
        self.schedule = Schedule.of(config.epochs)
        self.stopped: int | None = None
        """Epoch after which training stopped early."""
        self.history: list[EpochRow] = []

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.stopped is not None or self.epoch >= self.schedule.epochs

    @property
    def last_rate(self) -> float:
        """Images per second when the last epoch ended; 0 before that."""
        rates = [row["images_per_second"] for row in self.history if "images_per_second" in row]
        return rates[-1] if rates else 0.0

    @property
    def identity(self) -> str:
        """Hash of what is trained, and of the epochs that are finished."""
        text = json.dumps([self.fingerprint(), self.epoch], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fingerprint(self) -> Fingerprint:
        """Return what must be the same for a run to be resumed."""
        return {
            "config": json.loads(json.dumps({**self.config.lasting(), **self.task.settings()})),
            "names": list(self.task.names),
            "images": self.task.num_images,
            "data": self.task.digest,
            "what": self.task.description,
            "start": self.start,
        }

    def finish(self, epoch: int, facts: dict[str, float], patience: int | None = None) -> None:
        """Record that `epoch` epochs are done, and write averaged weights, state and curves.

        With `patience` the run is finished where AP has not risen for so many epochs.
        """
        self.epoch, self.steps, self.sums, self.counted, self.begun = epoch, 0, {}, 0, {}
        if not self.writes:
            return
        row = {"epoch": epoch, **facts}
        self.history.append(cast(EpochRow, {**row, **self.task.traces()}))
        if patience is not None and epoch < self.schedule.epochs:
            self.stopped = epoch if epochs_without_gain(self.history) >= patience else None
        self._save_weights(self.checkpoint)
        if best_epoch(self.history) == epoch:
            self._save_weights(self.best)
        self._save_curves()
        self.event("epoch", **row)
        if self.stopped is not None:
            self.event("early stop", epoch=epoch, best=best_epoch(self.history), patience=patience)
        self.save_state()  # last: a run that is killed before it repeats the epoch, files and all
        for key, value in facts.items():
            if self.board is not None:
                self.board.add_scalar(key, value, epoch)

    def add(self, losses: Mapping[str, float], batches: int) -> None:
        """Add the terms of the loss of some batches."""
        for key, value in losses.items():
            self.begun.setdefault(key, self.counted)
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.counted += batches

    def means(self) -> dict[str, float]:
        """Return the mean of each term, over the batches since it began."""
        return {
            key: value / (self.counted - self.begun.get(key, 0)) for key, value in self.sums.items()
        }

    def shorten(self, epochs: int, **facts: float) -> None:
        """Plan fewer epochs in all; `facts`, the reason, are logged."""
        before = self.schedule.epochs
        self.schedule = self.schedule.shortened(self.epoch, epochs)
        rounded = {key: round(value, 3) for key, value in facts.items()}
        self.event("shortened", epoch=self.epoch, epochs=epochs, before=before, **rounded)
        self.save_state()

    def close(self) -> None:
        """Close TensorBoard's file: its writer is a thread of its own."""
        if self.board is not None:
            self.board.close()

    def event(self, name: str, **facts: Any) -> None:
        """Append a line to the log."""
        if not self.writes:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": name, **facts}
        append_line(self.events, json.dumps(line))

    def save_state(self) -> None:
        """Write what is needed to resume from here."""
        if not self.writes:
            return
        state = {
            "format": STATE_FORMAT,
            "fingerprint": self.fingerprint(),
            "epoch": self.epoch,
            "epochs": self.schedule.epochs,
            "schedule": self.schedule.to_list(),
            "steps": self.steps,
            "sums": self.sums,
            "counted": self.counted,
            "begun": self.begun,
            "judged_on": self.judged_on,
            "network": self.network.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "history": self.history,
            "skipped": self.skipped,
            "threads": self.threads,
            "stopped": self.stopped,
            "task": dict(self.task.state()),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.state, buffer.getvalue())

    def load(self, *, resume: bool, restart: bool, patience: int | None = None) -> None:
        """Continue from the state in the folder, if there is one and no restart is asked for.

        A run that stopped early is finished, unless it is resumed with a larger `patience`.
        Raises `CheckpointError` where the state is of another run.
        """
        if restart or not self.state.exists():
            if self.writes:
                forget(self.state.parent)
            return
        try:
            state = torch.load(self.state, map_location="cpu", weights_only=True)
            fingerprint = state["fingerprint"]
        except (OSError, MemoryError) as error:
            raise CheckpointError(f"cannot read {self.state}: {error}") from None
        except Exception as error:
            raise CheckpointError(
                f"{self.state} is truncated ({type(error).__name__}): delete it to train afresh"
            ) from None
        version = state.get("format", STATE_FORMAT)  # versions up to 0.1.0 wrote none
        if version != STATE_FORMAT:
            raise CheckpointError(wrong_format(self.state, version, [STATE_FORMAT], "--restart"))
        began = fingerprint.get("config", {}).get("schedule")
        if (began, self.config.schedule) == ("cosine", "flat-cosine"):  # the default came later
            self.config = replace(self.config, schedule="cosine")
        own = self.fingerprint()
        if "data" not in fingerprint:
            raise CheckpointError(
                f"{self.state} was written by a HEAT that did not record what it was trained on: "
                "--restart replaces it, another --out keeps it"
            )
        # Older versions did not record these.
        fingerprint.setdefault("start", own["start"])
        fingerprint["config"].setdefault("optimizer", "adamw")
        fingerprint["config"].setdefault("vector_rate", 1.0)
        fingerprint["config"].setdefault("augment", {}).setdefault("pasted", 0.0)
        for name in self.task.settings():
            fingerprint["config"].setdefault(name, own["config"][name])
        different = differences(own, fingerprint)
        if different:
            raise CheckpointError(
                f"{self.state} belongs to other settings, data or architecture ({different}): "
                "--restart replaces it, another --out keeps it"
            )
        schedule = Schedule.from_list(state.get("schedule") or self.schedule.to_list())
        if schedule.planned == self.schedule.planned:
            self.schedule = schedule  # as it was shortened; of another length it is planned anew
        epochs = self.schedule.epochs
        if state["epoch"] > epochs:
            raise CheckpointError(
                f"{self.state} is at epoch {state['epoch']}, past --epochs {epochs}: --restart "
                "begins again"
            )
        stopped = state.get("stopped")
        patient = patience is not None and epochs_without_gain(state["history"]) < patience
        if stopped is not None and resume and patient:
            stopped = None
        if not resume and stopped is None and state["epoch"] < epochs:
            raise CheckpointError(
                f"{self.state} is at epoch {state['epoch']} of {epochs}: --resume goes on, "
                "--restart begins again"
            )
        self.network.load_state_dict(state["network"])
        self.average.load(state["average"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError:  # DETR's family under Muon, before its linear maps were orthogonal
            raise CheckpointError(
                f"{self.state} was written by a HEAT whose optimiser groups the weights otherwise: "
                "--restart begins again, another --out keeps it"
            ) from None
        if self.scaler is not None and state.get("scaler"):  # older versions wrote none
            self.scaler.load_state_dict(state["scaler"])
        self.history, self.skipped = state["history"], state["skipped"]
        self.epoch, self.steps, self.sums = state["epoch"], state["steps"], state["sums"]
        self.threads = state.get("threads")
        self.counted, self.begun = state["counted"], state.get("begun", {})
        self.task.load_state(state.get("task", {}))
        self.stopped = stopped
        if not self.finished:
            self.event("resume", epoch=self.epoch, steps=self.steps, epochs=epochs)
            if state.get("judged_on", self.judged_on) != self.judged_on:
                forget_scores(self.history, self.best if self.writes else None)

    def _save_weights(self, path: Path) -> None:
        facts = {
            **self.task.facts(),
            "images_per_second": self.last_rate,
            "skipped_steps": self.skipped,
            "stopped_early": self.stopped is not None,
            "schedule": self.schedule.to_list(),
            "history": self.history,
            "config": asdict(self.config),
            "torch": torch.__version__,
        }
        info = CheckpointInfo(
            kind=self.task.kind,
            description=self.task.description,
            names=self.task.names,
            epoch=self.epoch,
            epochs=self.schedule.epochs,
            facts=facts,
        )
        weights = self.average.weights if self.config.ema_decay else self.network.state_dict()
        save_checkpoint(path, weights, info)

    def _save_curves(self) -> None:
        columns = list(dict.fromkeys(key for row in self.history for key in row if key != "r"))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.metrics, text.getvalue())


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs it: pip install tensorboard") from None
    return SummaryWriter(str(folder))
