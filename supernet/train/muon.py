"""Muon for convolutions and linear maps, AdamW for all other parameters, as one optimiser.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest semi-orthogonal matrix,
so that all directions of a weight learn equally fast; a convolution is the matrix
[out, in * kernel].
The updates are scaled to one size for all shapes (Liu et al. 2025, Muon is Scalable for LLM
Training), so that both share one learning rate and one weight decay.
Shape suffixes: N matrices, R rows, C columns, R <= C.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Of the gradients, in Nesterov's form."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration; singular values end between 0.7 and 1.2."""
ITERATIONS = 5
RMS = 0.5
"""Root mean square of an update, in learning rates. AdamW's is about 0.2, which Liu et al. scale
Muon's to; from scratch on small sets 0.5 was better (benchmarks/results/recipe/log.md)."""
SMALLEST_SIDE = 16
"""Narrower matrices, such as depthwise convolutions, are left to AdamW."""


class MuonAdamW(torch.optim.AdamW):
    """Updates the groups with `orthogonal` by Muon, and the others by AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, dtype: torch.dtype) -> None:
        """Take groups with the key `orthogonal`; matrices are orthogonalised in `dtype`."""
        super().__init__(groups, lr=lr, fused=True)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients that the parameters have."""
        every = self.param_groups
        for group in every:
            if group["orthogonal"]:
                self._step_matrices(group)
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            momentum = self._momentum(weight).mul_(MOMENTUM).add_(weight.grad)
            matrix_RC = _wide(weight.grad.add(momentum, alpha=MOMENTUM).flatten(1))
            by_shape.setdefault(matrix_RC.shape, []).append((weight, matrix_RC))
        for (_, columns), pairs in by_shape.items():
            weights, matrices = zip(*pairs, strict=True)
            updates_NRC = orthogonalised(torch.stack(matrices).to(self.dtype)).float()
            for weight, update_RC in zip(weights, updates_NRC, strict=True):
                tall = weight.shape[0] > weight[0].numel()
                update = (update_RC.mT if tall else update_RC).reshape(weight.shape)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * RMS * columns**0.5)

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW expects it in what it loads
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum


def is_matrix(weight: nn.Parameter) -> bool:
    """Return whether Muon can update a parameter: a map that mixes channels, wide enough."""
    if weight.ndim not in (2, 4) or weight.shape[1] == 1:
        return False
    return min(weight.shape[0], weight[0].numel()) >= SMALLEST_SIDE


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    norms_N11 = torch.linalg.matrix_norm(matrices_NRC, keepdim=True)
    x_NRC: Tensor = matrices_NRC / norms_N11.clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC


def _wide(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
