"""Keys and values of windows: ENACT (Savathrakis et al. 2024), and average pooling to compare with.

Queries are unchanged. ENACT scores tokens by one linear map, turns the scores into the terms of an
entropy, smooths them in raster order, and averages the tokens of equal windows with these weights.
The length of a window is the mean length of runs of equal curvature: of each image (`per-image`),
of the batch (`official`, as the authors' code has it), or a calibrated constant, which alone is
exportable. `PoolAttention` has windows of equal weights.

Shape suffixes: B batch, N tokens, D channels, W tokens of a window, M windows, H heads.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..errors import UserError
from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .exact import Attention

FLOOR = 1e-8
KEPT_LENGTHS = 64
"""Lengths of windows that are remembered: a training makes millions, and is copied at scores."""
Windows = Literal["per-image", "official"]


class WindowAttention(Attention, ABC):
    """Attention over one key and value per window; a subclass defines the weights of tokens."""

    window: int | None = None
    """Tokens of a window, where it is fixed."""

    @abstractmethod
    def weigh(self, k_ND: Tensor) -> Tensor:
        """Return the weights of tokens in an image's whole windows, [M, W]; rows add up to 1."""

    def condense(
        self, k_BMD: Tensor, v_BMD: Tensor, pad_BM: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weighted sums over windows; those of an image are of its valid tokens alone."""
        keys, values = [], []
        for image in range(len(k_BMD)):
            k_ND, v_ND = k_BMD[image], v_BMD[image]
            if pad_BM is not None and not pad_BM[image].all():
                k_ND, v_ND = k_ND[~pad_BM[image]], v_ND[~pad_BM[image]]
            weights = self.weigh(k_ND)
            keys.append(weighted(k_ND, weights))
            values.append(weighted(v_ND, weights))
        counts = torch.tensor([len(rows) for rows in keys], device=k_BMD.device)
        past = torch.arange(int(counts.max()), device=k_BMD.device) >= counts[:, None]
        k_BMD, v_BMD = (pad_sequence(rows, batch_first=True) for rows in (keys, values))
        return k_BMD, v_BMD, past if bool(past.any()) else None

    def macs(self, tokens: int, width: int) -> int:
        """Count 2 N D^2 + 2 M D^2 + 2 N M D, M = N // w, at least 1."""
        window = min(self._fixed(), tokens)
        windows = tokens // window
        return 2 * tokens * width**2 + 2 * windows * width**2 + 2 * tokens * windows * width

    def _fixed(self) -> int:
        if self.window is None:
            raise UserError("windows of changing length are not exported: calibrate a constant one")
        return self.window


class PoolAttention(WindowAttention):
    """Attention over the means of windows: average pooling."""

    def __init__(self, window: int) -> None:
        """Use windows of so many tokens."""
        super().__init__()
        if window < 1:
            raise UserError(f"windows of {window} tokens: at least 1 needed")
        self.window = window

    def weigh(self, k_ND: Tensor) -> Tensor:
        """Return equal weights."""
        window = min(self._fixed(), len(k_ND))
        return k_ND.new_full((len(k_ND) // window, window), 1 / window)

    def emit_condense(self, graph: GraphWriter, k: Value, v: Value) -> tuple[Value, Value]:
        """Write the means of keys and values."""
        _, N, _ = k.shape
        window = min(self._fixed(), N)
        weights = graph.const(np.full((1, N // window, 1, window), 1 / window, dtype=np.float32))
        first = emit_weighted(graph, k, weights)
        return first, first if v is k else emit_weighted(graph, v, weights)


class EnactAttention(WindowAttention):
    """Attention over windows weighted by entropy; it adds D + 1 parameters."""

    taps: Tensor

    def __init__(
        self,
        width: int,
        windows: Windows | int = "per-image",
        *,
        sigma: float = 3.0,
        scale: Literal["paper", "official"] = "paper",
    ) -> None:
        """Build the scoring layer; the `official` scale divides by E after the softmax."""
        super().__init__()
        if isinstance(windows, int) and windows < 1:
            raise UserError(f"windows of {windows} tokens: at least 1 needed")
        if isinstance(windows, str) and windows not in ("per-image", "official"):
            raise UserError(f"windows {windows!r}: per-image, official or a number needed")
        self.score = nn.Linear(width, 1)
        self.windows, self.scale = windows, scale
        self.window = windows if isinstance(windows, int) else None
        self.register_buffer("taps", gaussian(sigma), persistent=False)
        self.seen: deque[int] = deque(maxlen=KEPT_LENGTHS)
        """Lengths of the windows that were chosen last."""

    def weigh(self, k_ND: Tensor) -> Tensor:
        """Return weights by entropy; the length of a window follows from the image, if not set."""
        terms_N = self._terms(k_ND)
        return self._weights(terms_N, self.window or round(mean_run(terms_N)))

    def condense(
        self, k_BMD: Tensor, v_BMD: Tensor, pad_BM: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weighted sums over windows; officially of one length, padding included."""
        if self.windows != "official":
            return super().condense(k_BMD, v_BMD, pad_BM)
        terms = [self._terms(k_ND) for k_ND in k_BMD]
        window = round(sum(mean_run(terms_N) for terms_N in terms) / len(terms))
        weights = [self._weights(terms_N, window) for terms_N in terms]
        k_BMD, v_BMD = (
            torch.stack([weighted(x, w) for x, w in zip(batch, weights, strict=True)])
            for batch in (k_BMD, v_BMD)
        )
        return k_BMD, v_BMD, None

    def attend(
        self, q_BHNE: Tensor, k_BHME: Tensor, v_BHME: Tensor, pad_BM: Tensor | None = None
    ) -> Tensor:
        """Attend over windows, without dropout."""
        E = q_BHNE.shape[-1]
        q = q_BHNE * E**0.5 if self.scale == "official" else q_BHNE
        read = super().attend(q, k_BHME, v_BHME, pad_BM)
        return read / E if self.scale == "official" else read

    def _terms(self, k_ND: Tensor) -> Tensor:
        # Terms of N tokens differ by less than the resolution of float16.
        with torch.autocast(k_ND.device.type, enabled=False):
            logits_N = self.score(k_ND.to(self.score.weight.dtype)).squeeze(-1)
            return smoothed(entropy(logits_N), self.taps)

    def _weights(self, terms_N: Tensor, window: int) -> Tensor:
        """Return the weights in whole windows, and remember their length."""
        window = min(max(1, window), len(terms_N))
        self.seen.append(window)
        start, windows = cropped(len(terms_N), window)
        return terms_N[start : start + windows * window].view(windows, window).softmax(-1)

    def emit_condense(self, graph: GraphWriter, k: Value, v: Value) -> tuple[Value, Value]:
        """Write the windows of a constant length."""
        with graph.full_precision():
            logits = graph.linear(graph.full(k), self.score)
            weights = self.emit_weights(graph, logits)
        weights = graph.working(weights)
        first = emit_weighted(graph, k, weights)
        return first, first if v is k else emit_weighted(graph, v, weights)

    def emit_weights(self, graph: GraphWriter, logits: Value) -> Value:
        """Write the weights [B, M, 1, W] of tokens of logits [B, N, 1], in full precision."""
        B, N, _ = logits.shape
        row = graph.reshape(logits, B, 1, N)
        chance = graph.add(graph.unary("Softmax", row, axis=-1), graph.scalar(FLOOR))
        bits = graph.binary("Mul", graph.unary("Log", chance), graph.scalar(-1 / np.log(2)))
        terms = graph.binary("Mul", chance, bits)
        reach = len(self.taps) // 2
        terms = graph.op(
            "Conv",
            [terms, graph.const(self.taps.view(1, 1, -1))],
            terms.shape,
            kernel_shape=[len(self.taps)],
            pads=[reach, reach],
        )
        window = min(self._fixed(), N)
        start, windows = cropped(N, window)
        if windows * window != N:
            terms = graph.slice(terms, 2, start, start + windows * window)
        terms = graph.reshape(terms, B, windows, 1, window)
        return graph.unary("Softmax", terms, axis=-1)


def entropy(logits_N: Tensor) -> Tensor:
    """Return the terms -p log2 p of a softmax over tokens, p not below 1e-8."""
    p = logits_N.softmax(-1) + FLOOR
    return -p * p.log2()


def gaussian(sigma: float) -> Tensor:
    """Return the taps of a Gaussian from -(3 sigma - 1) to 3 sigma - 1, adding up to 1."""
    reach = int(3 * sigma) - 1
    if reach < 1:
        raise UserError(f"sigma {sigma}: at least 1 needed")
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    return taps / taps.sum()


def smoothed(terms_N: Tensor, taps: Tensor) -> Tensor:
    """Convolve along the raster, zeros beyond the ends."""
    return F.conv1d(terms_N[None, None], taps[None, None], padding=len(taps) // 2)[0, 0]


@torch.no_grad()
def mean_run(smooth_N: Tensor) -> float:
    """Return the mean length of runs of equal curvature, by the sign of second differences."""
    second = -F.pad(smooth_N, (1, 0))[:-1] + 2 * smooth_N - F.pad(smooth_N, (0, 1))[1:]
    up = second > 0
    return len(up) / (1 + int((up[1:] != up[:-1]).sum()))


def cropped(tokens: int, window: int) -> tuple[int, int]:
    """Return where the first window begins and how many whole ones there are, cropped evenly."""
    return (tokens % window) // 2, tokens // window


def weighted(x_ND: Tensor, weights_MW: Tensor) -> Tensor:
    """Return the weighted sums of windows, [M, D]."""
    M, W = weights_MW.shape
    start, _ = cropped(len(x_ND), W)
    windows = x_ND[start : start + M * W].view(M, W, -1)
    return (weights_MW[:, None].to(x_ND.dtype) @ windows).squeeze(1)


def emit_weighted(graph: GraphWriter, x: Value, weights: Value) -> Value:
    """Write the weighted sums of windows of [B, N, D], [B, M, D]."""
    B, N, D = x.shape
    M, W = weights.shape[1], weights.shape[3]
    start, _ = cropped(N, W)
    if M * W != N:
        x = graph.slice(x, 1, start, start + M * W)
    product = graph.matmul(weights, graph.reshape(x, B, M, W, D))
    return graph.reshape(product, B, M, D)
