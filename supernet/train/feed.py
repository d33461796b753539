"""Feeds training: worker processes decode, augment and collate while the network computes.

A sample depends on its key alone (`samples.py`), so neither the number of workers nor of training
processes changes it, and a resumed run sees the same samples as an uninterrupted one.
"""

import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..data.detection_set import DetectionSet, Record
from ..data.ground_truth import GroundTruth
from ..data.shared_records import SharedRecords
from ..errors import DataError, HeatError
from .distributed import Group
from .recipes import TrainConfig
from .samples import Key, Keyed, Samples, Weights

Batch = tuple[Tensor, list[GroundTruth]]

MAX_WORKERS = 8
WORTH_A_PROCESS = 2000
"""Runs of fewer samples start no worker: that takes as long as making some hundred samples."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_SHARE = 0.25
"""Most of the free shared memory that records take: batches need it too."""
RARE = 0.1
"""Classes in a smaller share of the images are drawn more often, if asked to."""


class Batches(Sampler[list[Key]]):
    """The keys of this process's share of every batch, epoch after epoch."""

    def __init__(
        self,
        num_images: int,
        config: TrainConfig,
        epochs: range,
        group: Group,
        skip: int,
        weights: Weights | None = None,
        more: int = 0,
    ) -> None:
        """Take the epochs to cover, the first of them without its first `skip` batches.

        Of `more` images, whose keys follow the others', every batch has as many besides.
        """
        self.config, self.epochs, self.group, self.skip = config, epochs, group, skip
        self.num_images, self.weights, self.more = num_images, weights, more
        self._passes: dict[int, npt.NDArray[np.int64]] = {}

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of each batch."""
        for epoch in self.epochs:
            order = self._order(epoch)
            again = _repeats(order) if self.weights is not None else np.zeros_like(order)
            starts = batch_starts(len(order), self.config.batch_size)
            ends = [*starts[1:], len(order)]
            first = self.skip if epoch == self.epochs.start else 0
            for start, stop in list(zip(starts, ends, strict=True))[first:]:
                batch = range(start, stop)[self.group.rank :: self.group.world]
                keys = []
                for place in batch:
                    keys.append((epoch, int(order[place]), int(again[place])))
                    if self.more:
                        other, shown = self._other(epoch, place)
                        keys.append((epoch, self.num_images + other, shown))
                yield keys

    def _other(self, epoch: int, place: int) -> tuple[int, int]:
        """Return which of the other images accompanies an image: each once before any again.

        And how many passes over them the epoch has begun before.
        """
        pass_, index = divmod(epoch * self.num_images + place, self.more)
        if self._passes.get(pass_) is None:
            order = np.random.default_rng([self.config.seed, pass_, self.more])
            self._passes = {pass_: order.permutation(self.more)}
        return int(self._passes[pass_][index]), pass_ - epoch * self.num_images // self.more

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        rng = np.random.default_rng([self.config.seed, epoch])
        if self.weights is None:
            return rng.permutation(self.num_images)
        return rng.choice(self.num_images, self.num_images, p=self.weights)


def _repeats(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return of each index how often it occurs before."""
    seen: Counter[int] = Counter()
    found = np.zeros_like(order)
    for place, index in enumerate(order.tolist()):
        found[place] = seen[index]
        seen[index] += 1
    return found


def rare_first(data: DetectionSet) -> Weights:
    """Return each image's share of the draws: `max over its classes of sqrt(RARE / f)`, >= 1.

    f is the share of images in which a class occurs (repeat factor sampling, LVIS).
    """
    classes = [np.unique(record.labels) for record in data.records]
    seen = np.zeros(data.num_classes)
    for found in classes:
        seen[found] += 1
    factor = np.maximum(1.0, np.sqrt(RARE * len(classes) / np.maximum(seen, 1)))
    weights = np.array([factor[found].max(initial=1.0) for found in classes])
    return np.asarray(weights / weights.sum())


def batch_starts(num_images: int, batch_size: int) -> list[int]:
    """Return where each batch begins; a last one of less than half joins the batch before it.

    BatchNorm cannot train on a batch of one, and every process needs a share.
    """
    starts = list(range(0, num_images, batch_size))
    if len(starts) > 1 and num_images - starts[-1] < max(2, batch_size / 2):
        starts.pop()
    return starts


def default_workers(group: Group, samples: int) -> int:
    """Return how many worker processes feed each training process with so many samples."""
    if samples < WORTH_A_PROCESS:
        return 0
    if group.device.type == "cpu":
        return 1  # the network needs the other cores
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // group.world - 1))


def feed(
    data: DetectionSet,
    input_hw: tuple[int, int],
    config: TrainConfig,
    epochs: range,
    *,
    group: Group | None = None,
    workers: int = 0,
    skip: int = 0,
) -> Iterator[Batch]:
    """Yield this process's share of the batches of some epochs of a detection set."""
    weights = rare_first(data) if config.balanced else None
    records = shareable(data.records) if workers else data.records
    yield from feed_keyed(
        Samples(records, input_hw, config, weights),
        config,
        epochs,
        group=group,
        workers=workers,
        skip=skip,
        weights=weights,
    )


def shareable(records: Sequence[Record]) -> Sequence[Record]:
    """Return records that processes share, where there is room for them in shared memory."""
    shared = SharedRecords(records)
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not on Linux: files elsewhere
        return shared
    return shared if shared.size_bytes < free * SHARED_SHARE else records


def feed_keyed(
    source: Keyed,
    config: TrainConfig,
    epochs: range,
    *,
    group: Group | None = None,
    workers: int = 0,
    skip: int = 0,
    weights: Weights | None = None,
    more: int = 0,
) -> Iterator[tuple[Tensor, list[Any]]]:
    """Yield this process's share of the batches of some epochs, on its device.

    `weights` and `more` as of `Batches`, by default for all images of the source and for none.
    Raises `DataError` naming a file that cannot be read, `HeatError` if a worker died.
    """
    group = group or Group()
    loader = DataLoader(
        source,
        batch_sampler=Batches(len(source), config, epochs, group, skip, weights, more),
        collate_fn=_as_it_is,
        num_workers=workers,
        # Forked from a clean process: this one has threads of several libraries.
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=group.device.type == "cuda",
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own: the network's noise does not depend on it
    )
    batches = iter(loader)
    while True:
        try:
            found = next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise HeatError(
                f"a process that loads images died ({str(error).splitlines()[0]}): out of memory? "
                "--workers 0 loads without them; --resume goes on"
            ) from None
        if found is None:
            return
        if isinstance(found, str):
            raise DataError(found)
        images, targets = found
        yield (
            images.to(group.device, non_blocking=True),
            [target.to(group.device) for target in targets],
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the training process is gone: torch watches the fork server, which lives on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
