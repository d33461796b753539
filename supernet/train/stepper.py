"""One step of an optimiser on some batches: forward, backward, clip, update."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import HeatError
from .distributed import Group
from .memory import is_out_of_memory, what_fits
from .optimise import autocast_type
from .recipes import TrainConfig
from .task import Batch, Task, total


class Stepper:
    """Takes the steps of a training, in this process's share of a group."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        group: Group,
        *,
        compiled: bool = False,
    ) -> None:
        """Wrap the task's model for the group, and choose the type of autocast."""
        self.task, self.config = task, config
        self.optimizer, self.scaler, self.group = optimizer, scaler, group
        self.bad_steps = 0
        """Last steps, in a row, without a finite loss."""
        self.model = group.wrap(task.model)
        if compiled:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        self.type = autocast_type(config.precision, group.device)

    def step(self, parts: Sequence[Batch]) -> dict[str, float] | None:
        """Take one step on some batches, and return the sums of their losses by term.

        None if a loss is not finite: that turn, and those after it, change nothing. All processes
        take a step or none.
        Raises `HeatError` where memory does not suffice.
        """
        try:
            losses = self._turns(parts)
            self.bad_steps = self.bad_steps + 1 if losses is None else 0
            return losses
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        if self.group.world > 1:  # the others wait for this one's gradients: no size can be tried
            raise HeatError(
                f"out of memory at --batch-size {self.config.batch_size} in one of "
                f"{self.group.world} processes: give a smaller one, and --accumulate for the "
                "same steps"
            )
        self.task.turn = 0
        images, targets = parts[0]
        asked = self.config.batch_size
        each = max(1, len(images) * self.group.world // asked)  # images without labels besides

        def gradients(size: int) -> None:
            part = slice(each * size)
            total(self._loss(images[part], targets[part])).backward()  # type: ignore[no-untyped-call]

        raise HeatError(what_fits(gradients, self.config, len(images) // each, self.group.world))

    def _turns(self, parts: Sequence[Batch]) -> dict[str, float] | None:
        """Update the weights once for each turn of the task, most have one; sum their losses."""
        sums: dict[str, float] = {}
        for turn in range(self.task.turns):
            self.task.turn = turn
            found = self._step(parts)
            if found is None:
                return None
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def _step(self, parts: Sequence[Batch]) -> dict[str, float] | None:
        network = self.task.network
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
                buffer.copy_(before)  # the forward pass may have made BatchNorm's not finite
            return None
        return sums

    def _loss(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        images, targets = self.task.prepare((images, targets), self.config)
        device = images.device.type
        with torch.autocast(device, self.type, enabled=self.type is not None):
            outputs = self.model(images)
        return self.task.loss(outputs, targets, self.config)

    def _alone(self) -> AbstractContextManager[None]:
        """Do not average gradients over the processes before the last batch of a step."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()
