"""Adaptive clustering (ACT, Zheng et al. 2020): similar queries share one attention result.

It has no parameters and replaces the attention of a trained network. Queries of equal hash codes
are a cluster; its mean query attends, and the result is copied to the members. Keys of a cluster
are replaced by mean key and value, and the logarithm of their number is added to the logit, which
is the same as attending to so many copies of the mean.

With `most` the number of clusters is bounded and all shapes are static, as exported graphs require.
Clusters beyond the bound are merged with their neighbours; `seen` counts how often. Hashing is in
float32 always.

Shape suffixes: B batch, H heads, G = B * H, N queries, M keys, E width of a head, C clusters.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .emit_clusters import emit_copies, emit_index, emit_means
from .exact import Attention, attend, bias_of
from .hashing import BUCKET, Hash, cluster, cluster_bounded, means

Clustered = Literal["queries", "keys", "both"]
ROUNDS = 24
"""Default L; the paper has 32, 24, 20 and 16."""


@dataclass(slots=True)
class Seen:
    """Statistics of all clusterings since the start."""

    groups: int = 0
    """Clusterings: one for each image, head and call."""
    clusters: int = 0
    """Clusters of all of them, before any were merged."""
    vectors: int = 0
    """Vectors of all of them."""
    most: int = 0
    """Clusters of the largest."""
    overflows: int = 0
    """Clusterings with more clusters than the bound."""
    histogram: Counter[int] = field(default_factory=Counter)
    """Clusterings by their number of clusters."""

    @property
    def share(self) -> float:
        """Clusters by vectors, the paper's rho."""
        return self.clusters / self.vectors if self.vectors else math.nan

    def add(self, counts_G: Tensor, vectors: int, bound: int | None) -> None:
        """Count some clusterings of so many vectors each."""
        self.groups += len(counts_G)
        self.clusters += int(counts_G.sum())
        self.vectors += vectors * len(counts_G)
        self.most = max(self.most, int(counts_G.max()))
        self.histogram.update(counts_G.tolist())
        if bound is not None:
            self.overflows += int((counts_G > bound).sum())

    def bound(self, covered: float) -> int:
        """Return how many clusters suffice for a share of the clusterings."""
        left = covered * self.groups
        for count in sorted(self.histogram):
            left -= self.histogram[count]
            if left <= 0:
                return count
        return max(1, self.most)


class ActAttention(Attention):
    """Attention of clusters of similar queries, keys or both."""

    def __init__(
        self,
        width: int = 32,
        rounds: int = ROUNDS,
        *,
        bucket: float = BUCKET,
        clusters: Clustered = "queries",
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        """Draw the hash of vectors of a head's width; `most` bounds the clusters."""
        super().__init__()
        if most is not None and most < 1:
            raise UserError(f"at most {most} clusters: at least 1 needed")
        if clusters not in ("queries", "keys", "both"):
            raise UserError(f"clusters of {clusters!r}: queries, keys or both needed")
        self.hash = Hash(width, rounds, bucket, seed)
        self.clusters, self.most = clusters, most
        self.seen = Seen()

    def attend(
        self, q_BHNE: Tensor, k_BHME: Tensor, v_BHME: Tensor, pad_BM: Tensor | None = None
    ) -> Tensor:
        """Attend by clusters; results of queries that are padding are meaningless."""
        B, H, N, E = q_BHNE.shape
        bias = bias_of(pad_BM, q_BHNE)
        if self.clusters != "queries":
            k_BHME, v_BHME, bias = self._condensed(k_BHME, v_BHME, pad_BM)
        dropout = self.dropout if self.training else 0.0
        if self.clusters == "keys":
            return attend(q_BHNE, k_BHME, v_BHME, bias, dropout)
        # Queries of self-attention are padding where keys are; those of others never are.
        pad_BN = pad_BM if pad_BM is not None and pad_BM.shape[1] == N else None
        q_GNE = q_BHNE.reshape(B * H, N, E)
        index_GN, count = self._index(q_GNE, _by_head(pad_BN, H))
        prototypes = means(q_GNE, index_GN, count)[0].to(q_BHNE.dtype)
        read = attend(prototypes.view(B, H, count, E), k_BHME, v_BHME, bias, dropout)
        wide = index_GN.view(B, H, N, 1).expand(-1, -1, -1, read.shape[-1])
        return read.gather(2, wide)

    def _condensed(
        self, k_BHME: Tensor, v_BHME: Tensor, pad_BM: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean keys, mean values, and the logarithms of their numbers, [B, H, 1, C]."""
        B, H, M, E = k_BHME.shape
        k_GME = k_BHME.reshape(B * H, M, E)
        index_GM, count = self._index(k_GME, _by_head(pad_BM, H))
        both = torch.cat([k_GME, v_BHME.reshape(B * H, M, -1)], -1)
        mean, members_GC = means(both, index_GM, count)
        if pad_BM is not None:
            valid = (~pad_BM).to(members_GC.dtype).repeat_interleave(H, 0)
            members_GC = members_GC.new_zeros(members_GC.shape).scatter_add(1, index_GM, valid)
        bias = members_GC.clamp_min(1).log()
        mean, bias = mean.to(both.dtype), bias.to(both.dtype)
        bias = bias.masked_fill(members_GC == 0, torch.finfo(bias.dtype).min / 2)
        mean = mean.view(B, H, count, -1)
        return mean[..., :E], mean[..., E:], bias.view(B, H, 1, count)

    def _index(self, x_GNE: Tensor, pad_GN: Tensor | None) -> tuple[Tensor, int]:
        """Return the cluster of every vector, and how many there are at most."""
        x_GNE = x_GNE.detach()
        if self.most is None:
            index, counts = cluster(self.hash.codes(x_GNE), pad_GN)
            self.seen.add(counts, x_GNE.shape[1], None)
            return index, int(counts.max())
        keys = self.hash.keys(x_GNE)
        if pad_GN is not None:
            keys = keys.masked_fill(pad_GN, -1.0)
        most = min(self.most, x_GNE.shape[1])
        index, counts = cluster_bounded(keys, most)
        self.seen.add(counts, x_GNE.shape[1], most)
        return index, most

    def emit_attend(self, graph: GraphWriter, q: Value, k: Value, v: Value) -> Value:
        """Write the static form, which needs `most`."""
        if self.most is None:
            raise UserError("ACT needs a bound of its clusters to be exported: calibrate it first")
        bias = None
        if self.clusters != "queries":
            index = emit_index(graph, self.hash, k, min(self.most, k.shape[1]))
            both, members = emit_means(
                graph, graph.concat([k, v], 2), index, min(self.most, k.shape[1])
            )
            bias = _emit_log(graph, members)
            k, v = graph.split(both, 2, (k.shape[2], v.shape[2]))
        if self.clusters == "keys":
            return _emit_biased(graph, q, k, v, bias)
        most = min(self.most, q.shape[1])
        index = emit_index(graph, self.hash, q, most)
        prototypes, _ = emit_means(graph, q, index, most)
        return emit_copies(graph, _emit_biased(graph, prototypes, k, v, bias), index)

    def macs(self, tokens: int, width: int) -> int:
        """Count 4 N D^2 + N D L + 2 C N D, C being the bound, or the mean so far."""
        most = min(self.most, tokens) if self.most is not None else self.seen.share * tokens
        if math.isnan(most):
            raise UserError("clusters of ACT are counted by a bound, or after it has run")
        hashing = tokens * width * self.hash.rounds
        return 4 * tokens * width**2 + hashing + round(2 * most * tokens * width)


def _by_head(pad_BN: Tensor | None, heads: int) -> Tensor | None:
    return None if pad_BN is None else pad_BN.repeat_interleave(heads, 0)


def _emit_log(graph: GraphWriter, members: Value) -> Value:
    """Write the logarithms of members, far below zero where there are none, [G, 1, C]."""
    G, C, _ = members.shape
    with graph.full_precision():
        log = graph.unary("Log", graph.binary("Max", members, graph.scalar(1e-30)))
        log = graph.reshape(log, G, 1, C)
    return graph.working(log)


def _emit_biased(graph: GraphWriter, q: Value, k: Value, v: Value, bias: Value | None) -> Value:
    logits = graph.matmul(q, graph.swap(k))
    if bias is not None:
        logits = graph.add(logits, bias)
    return graph.matmul(graph.unary("Softmax", logits, axis=-1), v)
