"""The images and boxes of a set in a few tensors, which processes that load images share.

A list of records is copied to every process: a hundred megabytes each for a set as large as COCO.
Torch hands a tensor over without a copy.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .detection_set import Record
from .joined_weights import joined_weights


class SharedRecords(Sequence[Record]):
    """Records as training needs them: without areas and crowd regions."""

    def __init__(self, records: Sequence[Record]) -> None:
        """Copy the records, in their order."""
        names = [os.fsencode(record.path) for record in records]
        self._names = torch.from_numpy(np.frombuffer(b"".join(names), np.uint8).copy())
        self._facts = torch.tensor(
            [(r.image_id, r.height, r.width) for r in records], dtype=torch.int64
        )
        """Image id, height and width, [N, 3]."""
        self._boxes = _joined([record.boxes_xyxy for record in records], (0, 4), np.float32)
        self._labels = _joined([record.labels for record in records], (0,), np.int64)
        weights = joined_weights(records)
        self._weights = None if weights is None else torch.from_numpy(weights)
        self._name_ends = _ends([len(name) for name in names])
        self._box_ends = _ends([len(record.labels) for record in records])

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(item.nbytes for item in vars(self).values() if isinstance(item, Tensor))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._facts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return a record, made anew."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        image_id, height, width = self._facts[place].tolist()
        first, last = self._name_ends[place : place + 2].tolist()
        name = os.fsdecode(self._names[first:last].numpy().tobytes())
        first, last = self._box_ends[place : place + 2].tolist()
        return Record(
            image_id,
            Path(name),
            height,
            width,
            self._boxes[first:last].numpy(),
            self._labels[first:last].numpy(),
            weights=None if self._weights is None else self._weights[first:last].numpy(),
        )

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in their order."""
        return (self[place] for place in range(len(self)))


def _joined(parts: Sequence[npt.NDArray[Any]], empty: tuple[int, ...], kind: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(empty, kind), *parts]))


def _ends(lengths: Sequence[int]) -> Tensor:
    """Return where each part begins, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
