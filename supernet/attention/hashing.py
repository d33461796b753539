"""Locality-sensitive hashing, by which ACT finds similar vectors.

`h_l(x) = floor((a_l . x + b_l) / r)` with a ~ N(0, I), b ~ U(0, r), l = 1..L (Datar et al. 2004;
Zheng et al. 2020, Eq. 5). Vectors of equal codes are one cluster.

Two forms: a dynamic one that compares codes as they are, and a static one for graphs, whose number
of clusters is bounded. There a weighted sum of the codes, modulo 64, is one whole number below
2^23, which float32 holds exactly; the numbers are sorted, and neighbours that differ begin a
cluster.

Shape suffixes: G groups (batch times heads), N vectors, E their width, L functions, C clusters.
"""

import math

import torch
from torch import Tensor, nn

from ..errors import HeatError, UserError

MAX_ROUNDS = 32
BUCKET = 8.0
"""r of the paper, on the scale of queries multiplied by E ** -0.5."""
CODES = 64
WEIGHTS = 4096
"""A key is below MAX_ROUNDS * CODES * WEIGHTS = 2^23."""
HASH_BITS = 40


class Hash(nn.Module):
    """L hash functions of a seed; fewer of them are the first of more."""

    directions_LE: Tensor
    offsets_L: Tensor
    weights_L: Tensor

    def __init__(self, width: int, rounds: int, bucket: float = BUCKET, seed: int = 0) -> None:
        """Draw `rounds` hash functions for vectors of a width."""
        super().__init__()
        if not 1 <= rounds <= MAX_ROUNDS:
            raise UserError(f"{rounds} rounds of hashing: 1 to {MAX_ROUNDS} possible")
        if not bucket > 0:
            raise UserError(f"hash buckets of width {bucket}: a positive width needed")
        self.rounds, self.bucket = rounds, bucket
        random = torch.Generator().manual_seed(seed)
        drawn = [
            (
                torch.randn(width, generator=random),
                torch.rand(1, generator=random),
                torch.randint(1, WEIGHTS, (1,), generator=random),
            )
            for _ in range(rounds)
        ]
        directions, offsets, weights = zip(*drawn, strict=True)
        # Not saved: a checkpoint of the host fits every number of rounds.
        self.register_buffer("directions_LE", torch.stack(directions), persistent=False)
        self.register_buffer("offsets_L", bucket * torch.cat(offsets), persistent=False)
        self.register_buffer("weights_L", torch.cat(weights).float(), persistent=False)

    @torch.no_grad()
    def codes(self, x_GNE: Tensor) -> Tensor:
        """Return the codes, whole numbers as floats [G, N, L]."""
        if self.directions_LE.dtype not in (torch.float32, torch.float64):
            raise HeatError(
                f"hashing in {self.directions_LE.dtype} overflows: keep the network in float32"
            )
        with torch.autocast(x_GNE.device.type, enabled=False):
            x = x_GNE.to(self.directions_LE.dtype)
            return ((x @ self.directions_LE.T + self.offsets_L) / self.bucket).floor()

    @torch.no_grad()
    def keys(self, x_GNE: Tensor) -> Tensor:
        """Return one whole number below 2^23 for each vector, [G, N]; codes rarely collide."""
        # Not a matrix product: autocast would compute it in half precision.
        return (self.codes(x_GNE).remainder(CODES) * self.weights_L).sum(-1)


@torch.no_grad()
def cluster(codes_GNL: Tensor, pad_GN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cluster of every vector [G, N], from 0 in each group, and clusters by group [G].

    All padding of a group is one cluster, its last.
    """
    G, N, L = codes_GNL.shape
    random = torch.Generator().manual_seed(L)
    odd = torch.randint(2**62, (L,), generator=random).to(codes_GNL.device) * 2 + 1
    mixed = (codes_GNL.long() * odd).sum(-1)  # modulo 2^64
    mixed = (mixed ^ (mixed >> 24)) & ((1 << HASH_BITS) - 1)
    if pad_GN is not None:
        mixed = mixed.masked_fill(pad_GN, 1 << HASH_BITS)
    groups = torch.arange(G, device=mixed.device)[:, None] << (HASH_BITS + 1)
    found, index = torch.unique(groups + mixed, return_inverse=True)
    counts = (found >> (HASH_BITS + 1)).bincount(minlength=G)
    first = counts.cumsum(0) - counts
    return index.view(G, N) - first[:, None], counts


@torch.no_grad()
def cluster_bounded(keys_GN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return what `cluster` does, with at most `most` clusters: neighbours in order are merged.

    The counts are those before merging.
    """
    ordered, order = keys_GN.sort(dim=-1, descending=True, stable=True)
    starts = torch.zeros_like(order)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = starts.cumsum(-1)
    counts = rank[:, -1] + 1
    rank = rank * most // counts.clamp_min(most)[:, None]
    return torch.empty_like(rank).scatter_(1, order, rank), counts


def means(x_GNE: Tensor, index_GN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of every cluster [G, C, E] and its number of members [G, C].

    Both are computed, and returned, in float32 at least.
    """
    G, N, E = x_GNE.shape
    x_GNE = x_GNE.to(torch.promote_types(x_GNE.dtype, torch.float32))
    sums = x_GNE.new_zeros(G, count, E).scatter_add(1, index_GN[..., None].expand(G, N, E), x_GNE)
    ones = torch.ones_like(index_GN, dtype=x_GNE.dtype)
    members = x_GNE.new_zeros(G, count).scatter_add(1, index_GN, ones)
    return sums / members.clamp_min(1)[..., None], members


def collision_probability(distance: float, bucket: float) -> float:
    """Return the chance that vectors of a distance share a code of one hash function.

    The paper's Eq. 7 with the density of |N(0, 1)|, t = r / c, in closed form:
    1 - 2 Phi(-t) - 2 / (sqrt(2 pi) t) (1 - exp(-t^2 / 2)).
    """
    if distance == 0:
        return 1.0
    t = bucket / distance
    tail = math.erfc(t / math.sqrt(2))  # 2 Phi(-t)
    return 1 - tail - 2 / (math.sqrt(2 * math.pi) * t) * (1 - math.exp(-(t**2) / 2))
