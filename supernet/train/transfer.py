"""Starts a network from the weights of another: tensors of equal name and shape are copied.

Class outputs are matched by class name, so that a network for other classes, or for the same in
another order, keeps the outputs of the classes that both have.

Suffixes: G groups of class rows, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import read_info, read_state_dict
from ..errors import CheckpointError
from ..network import Network

SHOWN = 3
"""Most names of each kind in a log line."""


class TakenFacts(TypedDict):
    """The fields of `Taken`, as a stage records them."""

    used: int
    other_shape: list[str]
    missing: list[str]
    left_over: list[str]
    new_classes: list[str]


@dataclass(frozen=True, slots=True)
class Taken:
    """Which weights of another network were copied into one."""

    used: int
    """Tensors of the network that were set."""
    other_shape: tuple[str, ...]
    """Tensors of the network that the source has in another shape."""
    missing: tuple[str, ...]
    """Tensors of the network that the source does not have."""
    left_over: tuple[str, ...]
    """Tensors of the source that the network does not have."""
    new_classes: tuple[str, ...] = ()
    """Classes whose outputs keep their initial weights."""

    @property
    def complete(self) -> bool:
        """Whether every weight of the network was set."""
        return not (self.other_shape or self.missing or self.new_classes)

    def facts(self) -> TakenFacts:
        """Return the record of a stage."""
        return {
            "used": self.used,
            "other_shape": list(self.other_shape),
            "missing": list(self.missing),
            "left_over": list(self.left_over),
            "new_classes": list(self.new_classes),
        }

    def __str__(self) -> str:
        """Return the text of a log line."""
        parts = [f"{self.used} tensors taken"]
        for what, names in (
            ("of another shape", self.other_shape),
            ("missing", self.missing),
            ("unused", self.left_over),
            ("classes new", self.new_classes),
        ):
            dots = " ..." if len(names) > SHOWN else ""
            shown = f" ({', '.join(names[:SHOWN])}{dots})" if names else ""
            parts.append(f"{len(names)} {what}{shown}")
        return ", ".join(parts)


class Source(NamedTuple):
    """Weights to start from."""

    path: Path
    weights: dict[str, Tensor]
    names: tuple[str, ...] | None
    """Class names, where the file records them."""


class ClassRows(NamedTuple):
    """The first axis of a tensor of class outputs: G groups of K rows, then rows of no class."""

    groups: int
    others: int


def read_source(path: Path) -> Source:
    """Read a `.safetensors` file, HEAT's or another's, or a torch checkpoint."""
    if path.suffix != ".safetensors":
        return Source(path, read_state_dict(path), None)
    try:
        with safe_open(path, framework="pt") as file:
            ours = "kind" in (file.metadata() or {})
        weights = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error})") from None
    if not ours:
        return Source(path, weights, None)
    info = read_info(path)
    if info.kind == "backbone":
        raise CheckpointError(f"{path} holds a backbone: give it as --backbone")
    return Source(path, weights, info.names)


@torch.no_grad()
def take_weights(source: Source, network: Network, names: Sequence[str]) -> Taken:
    """Copy tensors of equal name and shape into a network whose classes are `names`.

    Of class outputs those rows are copied whose class the source has too; where it records no
    names, all or none. Raises `CheckpointError` where nothing fits.
    """
    own = network.state_dict()
    classes = {key: ClassRows(*rows) for key, rows in network.class_rows().items()}
    pairs = _same_classes(names, source.names)
    used: set[str] = set()
    other_shape: set[str] = set()
    left: list[str] = []
    for key, value in source.weights.items():
        if key not in own:
            left.append(key)
        elif key in classes and pairs is not None:
            assert source.names is not None
            counts = len(names), len(source.names)
            if not _fit(own[key], value, classes[key], *counts):
                other_shape.add(key)
            elif pairs:
                _copy_rows(own[key], value, classes[key], pairs, *counts)
                used.add(key)
        elif own[key].shape == value.shape:
            own[key].copy_(value)
            used.add(key)
        else:
            other_shape.add(key)
    return taken(source.path, own, used, other_shape, left, _new(names, pairs, classes, used))


def taken(
    path: Path,
    own: Mapping[str, Tensor],
    used: set[str],
    other_shape: set[str],
    left: Sequence[str],
    new_classes: Sequence[str] = (),
) -> Taken:
    """Return which tensors of a file were copied; refuse a file of which nothing fits."""
    if not any(own[key].is_floating_point() for key in used):
        raise CheckpointError(
            f"{path} fits in nothing: its tensors have other names or shapes "
            f"({len(other_shape)} of another shape, {len(left)} of other names, first "
            f"{next(iter([*sorted(other_shape), *left]), 'none')})"
        )
    missing = sorted(set(own) - used - other_shape)
    return Taken(
        len(used), tuple(sorted(other_shape)), tuple(missing), tuple(sorted(left)),
        tuple(new_classes),
    )  # fmt: skip


def _same_classes(
    names: Sequence[str], theirs: Sequence[str] | None
) -> list[tuple[int, int]] | None:
    """Return (own index, their index) of the classes both have; None where theirs are unknown."""
    if theirs is None:
        return None
    if tuple(names) == tuple(theirs):
        return [(index, index) for index in range(len(names))]
    return [
        (index, theirs.index(name))
        for index, name in enumerate(names)
        if list(names).count(name) == 1 == list(theirs).count(name)
    ]


def _fit(own: Tensor, value: Tensor, rows: ClassRows, num_own: int, num_theirs: int) -> bool:
    """Return whether two tensors differ in their number of classes at most."""
    lengths = rows.groups * num_own + rows.others, rows.groups * num_theirs + rows.others
    return own.shape[1:] == value.shape[1:] and (len(own), len(value)) == lengths


def _copy_rows(
    own: Tensor,
    value: Tensor,
    rows: ClassRows,
    pairs: Sequence[tuple[int, int]],
    num_own: int,
    num_theirs: int,
) -> None:
    to, of = (torch.tensor(part) for part in zip(*pairs, strict=True))
    first = torch.arange(rows.groups)[:, None]
    own[(first * num_own + to).flatten()] = value[(first * num_theirs + of).flatten()].to(own)
    own[rows.groups * num_own :] = value[rows.groups * num_theirs :].to(own)


def _new(
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]] | None,
    classes: Mapping[str, ClassRows],
    used: set[str],
) -> list[str]:
    """Return the classes whose outputs keep their initial weights."""
    if not set(classes) <= used:
        return list(names)
    known = range(len(names)) if pairs is None else [index for index, _ in pairs]
    return [name for index, name in enumerate(names) if index not in known]
