"""Folding: training forms become deployed forms, batch normalisation part of convolutions."""

import copy
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import HeatError

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class Foldable(Protocol):
    """A training-form module that knows its static deployed form."""

    def fold(self) -> nn.Module:
        """Return the deployed form, computing the same function in evaluation mode."""


def fold_bn(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the kernel and bias of `bn(conv(x))` with running statistics (computed in f64)."""
    assert bn.running_mean is not None and bn.running_var is not None
    factor = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    bias = bn.bias.double() - bn.running_mean.double() * factor
    return (weight.double() * factor[:, None, None, None]).float(), bias.float()


def conv_from(weight: Tensor, bias: Tensor, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Wrap a kernel and a bias as a same-padded convolution on the kernel's device."""
    d_out, d_in, kernel, _ = weight.shape
    # On `meta` nothing is drawn at random, to be replaced at once.
    conv = nn.Conv2d(
        d_in * groups, d_out, kernel, stride, kernel // 2, groups=groups, device="meta"
    )
    conv.weight = nn.Parameter(weight.detach().clone())
    conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def with_factor(part: nn.Conv2d, factor: float) -> nn.Conv2d:
    """Fold a factor into a convolution; the range of its outputs, found before, shrinks with it."""
    with torch.no_grad():
        part.weight *= factor
        if part.bias is not None:
            part.bias *= factor
    part.heat_factor = factor  # type: ignore[assignment]
    return part


def split_conv(conv: nn.Module, count: int) -> list[nn.Conv2d]:
    """Return convolutions that each compute an equal part of a folded one's outputs, in order."""
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        raise HeatError(f"{type(conv).__name__} is not a folded convolution: fold() first")
    parts = []
    for weight, bias in zip(conv.weight.chunk(count), conv.bias.chunk(count), strict=True):
        part = conv_from(weight, bias, conv.stride[0], conv.groups)
        # Ranges of the whole convolution, looked up by its name, hold for its parts.
        part.heat_name = str(getattr(conv, "heat_name", ""))  # type: ignore[assignment]
        parts.append(part)
    return parts


def fold(module: Module) -> Module:
    """Return a deep copy in evaluation mode with every foldable part in its deployed form."""
    with torch.no_grad():
        folded = {id(part): part.fold() for part in _foldable(module)}
    return copy.deepcopy(module, folded).eval()


def _foldable(module: nn.Module) -> Iterator[Foldable]:
    """Yield the foldable parts of a module, not those of foldable ones."""
    for child in module.children():
        if isinstance(child, Foldable):
            yield child
        else:
            yield from _foldable(child)
