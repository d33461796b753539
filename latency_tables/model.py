"""The model of a latency table: one Gaussian over the log latency of every entry of a space.

    log ms(sample of e in state s) = x_e + s_0 + beta_f(e) . q(s) + noise
    log ms(network a in state s)   = log(F * sum_e exp(x_e + beta . q) + c * n) + s_0 + d_a + noise

x has the prior of `families.py`. s_0 is the log slowness of the reference network, q that slowness
and by how much each other reference exceeds it, beta a family's own sensitivity to them. F is the
cost of memory and caches in a whole network, c the cost of each of its n entries beyond its own
time. d_a is the part of network a that the sum does not explain; networks that spend their time in
the same entries share it (covariance: the intersection of their shares of time, a positive
definite kernel).

All is linear but the sum, which is linearised around the current estimate (Gauss-Newton); so the
posterior is that of Gaussian process regression with linear observations (Rasmussen and Williams
2006, section 2.2). The noise of a sample that all others contradict, by its leave-one-out residual
(section 5.4.2), is widened until they do not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

from .calibration import Calibration
from .families import Array, family, prior_covariance, prior_mean
from .probe.setting import REFERENCES
from .samples import EntrySample, NetworkSample, State, slowness

SENSITIVITY_SD = (0.2, 0.5, 0.5, 0.3)
"""Prior standard deviation of beta; at its mean 0 a family slows as the reference network does."""
FACTOR_SD = 0.1
"""Prior standard deviation of log F."""
OVERHEAD_SHARE = 0.002
"""Prior standard deviation of c, as a share of the reference network's milliseconds."""
UNEXPLAINED_SD = 0.02
"""Prior standard deviation of d."""
KNOWN_SD = 0.02
"""Standard deviation of log F, and of c in units of its prior's, if taken from a calibration."""
ITERATIONS = 4
CONVERGED = 1e-4
"""Largest change of the latent vector at which the iterations end."""
ROBUST_ITERATIONS = 3
OUTLIER = 2.5
"""Leave-one-out residual, in standard deviations, beyond which a sample's noise is widened."""
EXPECTED_CHECKS = 4.0
"""Weight, in checked networks, of the assumption that stated deviations are right (`surprise`)."""
CERTAIN = 3.0
"""The logarithm of a timing is used if it is this many standard deviations above zero."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Milliseconds of one network."""

    ms: float
    """At the table's base state."""
    sd: float
    """Relative standard deviation."""


class LatencyModel:
    """The posterior, given samples of entries and of networks."""

    def __init__(
        self,
        entries: Sequence[Entry],
        samples: Sequence[EntrySample],
        networks: Sequence[NetworkSample],
        base: State,
        calibration: Calibration | None = None,
    ) -> None:
        """Fit the model; `base` is the state that its milliseconds refer to.

        Without network samples, F and c are those of `calibration`.
        """
        self._known = calibration if calibration is not None and not networks else None
        every = set(entries) | {sample.entry for sample in samples}
        every |= {e for net in networks for e in net.architecture.entries().values()}
        self.entries = sorted(every)
        self.index = {entry: number for number, entry in enumerate(self.entries)}
        self.samples, self.networks, self.base = tuple(samples), tuple(networks), base
        names = sorted({family(entry) for entry in self.entries})
        self._family = np.array([names.index(family(entry)) for entry in self.entries])
        self._families = len(names)
        self._counts = [self.counts(net.architecture.entries()) for net in self.networks]
        self._set_prior()
        self._fit()

    # The latent vector: entries, then sensitivities family by family, then log F, then c in units
    # of its prior.

    def _set_prior(self) -> None:
        entries, width = len(self.entries), len(REFERENCES)
        size = entries + self._families * width + 2
        self._mean = np.zeros(size)
        self._mean[:entries] = prior_mean(self.entries) + self._level()
        self._prior = np.zeros((size, size))
        self._prior[:entries, :entries] = prior_covariance(self.entries)
        spread = np.square(np.tile(SENSITIVITY_SD, self._families))
        rest = np.concatenate([spread, [FACTOR_SD**2, 1.0]])
        self._prior[range(entries, size), range(entries, size)] = rest
        self._overhead_unit = OVERHEAD_SHARE * (self.base[0] if self.base else 1.0)
        if self._known is not None:
            self._mean[-2] = np.log(self._known.factor)
            self._mean[-1] = self._known.overhead_ms / self._overhead_unit
            self._prior[[-2, -1], [-2, -1]] = KNOWN_SD**2

    def _level(self) -> float:
        """Return the log milliseconds per unit of the prior's line, from the samples."""
        positive = [s for s in self.samples if s.ms > 0]
        if positive:
            logs = np.log([s.ms for s in positive]) - prior_mean([s.entry for s in positive])
            return float(np.median(logs))
        if self.networks:
            net = self.networks[0]
            line = np.exp(prior_mean(list(net.architecture.entries().values()))).sum()
            return float(np.log(net.ms / line))
        return float(np.log(max(1e-9, self.base[0] if self.base else 1.0)) - 15.0)

    def counts(self, entries: Mapping[str, Entry]) -> Array:
        """Return how often each entry is in a network, shape [entries]."""
        found = np.zeros(len(self.entries))
        for entry, number in Counter(entries.values()).items():
            found[self.index[entry]] = number
        return found

    def _features(self, states: Sequence[State]) -> tuple[Array, Array]:
        """Return s_0 [n] and q [n, 4] of states."""
        slow = slowness(states, self.base)
        return slow[:, 0], np.column_stack([slow[:, 0], slow[:, 1:] - slow[:, :1]])

    def _fit(self) -> None:
        entries, width = len(self.entries), len(REFERENCES)
        own = np.array([self.index[sample.entry] for sample in self.samples], dtype=int)
        ms = np.array([sample.ms for sample in self.samples])
        sd_ms = np.maximum(1e-6, [sample.sd_ms for sample in self.samples])
        s0, q = self._features([sample.state for sample in self.samples])
        net_s0, net_q = self._features([net.state for net in self.networks])
        net_log = np.log([net.ms for net in self.networks])
        net_sd = np.array([net.sd for net in self.networks])
        count = len(self.samples)
        total = count + len(self.networks)
        rows = np.zeros((total, len(self._mean)))
        for number in range(count):
            rows[number, own[number]] = 1.0
            at = entries + width * self._family[own[number]]
            rows[number, at : at + width] = q[number]
        cross = np.zeros((len(self._mean), total))
        # Only entries are correlated, and a sample is of one entry.
        rest = np.diag(self._prior)[entries:]
        cross[:entries, :count] = self._prior[:entries, own]
        cross[entries:, :count] = rest[:, None] * rows[:count, entries:].T
        gram = np.zeros((total, total))
        gram[:count, :count] = rows[:count] @ cross[:, :count]
        target, noise = np.zeros(total), np.ones(total)
        certain = ms > CERTAIN * sd_ms
        logs = np.log(np.where(certain, ms, 1.0)) - s0
        self._theta = self._mean.copy()
        self._shares = np.zeros((len(self.networks), entries))
        inflate = np.ones(total)
        for robust in range(ROBUST_ITERATIONS):
            for _ in range(ITERATIONS):
                # An entry's own timing at the current estimate of its state.
                now = rows[:count] @ self._theta
                here_ms = np.exp(now + s0)
                step = np.clip((ms - here_ms) / here_ms, -1.0, 1.0)
                target[:count] = np.where(certain, logs, now + step)
                noise[:count] = sd_ms / np.where(certain, np.maximum(ms, 1e-9), here_ms)
                for number, counts in enumerate(self._counts):
                    row, value, self._shares[number] = self._network_row(counts, net_q[number])
                    rows[count + number] = row
                    gap = np.clip(net_log[number] - value - net_s0[number], -1.0, 1.0)
                    target[count + number] = row @ self._theta + gap
                noise[count:] = net_sd
                cross[:entries, count:] = self._prior[:entries, :entries] @ rows[count:, :entries].T
                cross[entries:, count:] = rest[:, None] * rows[count:, entries:].T
                gram[:, count:] = rows @ cross[:, count:]
                gram[count:, :count] = gram[:count, count:].T
                gram[count:, count:] += UNEXPLAINED_SD**2 * _intersection(
                    self._shares, self._shares
                )
                factor = cho_factor(gram + np.diag((noise * inflate) ** 2), lower=True)
                self._alpha = cho_solve(factor, target - rows @ self._mean)
                before, self._theta = self._theta, self._mean + cross @ self._alpha
                if np.abs(self._theta - before).max() < CONVERGED:
                    break
            self._cross, self._chol = cross, factor
            inverse = cho_solve(factor, np.eye(total))
            inflated = self._alpha * np.sqrt(1.0 / np.diag(inverse))
            # Residuals by each sample's stated noise, not the widened one.
            stated = 1.0 / np.diag(inverse) - noise**2 * (inflate**2 - 1.0)
            self.residuals = self._alpha / np.diag(inverse) / np.sqrt(np.maximum(stated, 1e-12))
            if robust < ROBUST_ITERATIONS - 1:
                inflate *= np.maximum(1.0, np.abs(inflated) / OUTLIER)
        self._leave_out(inverse, count)

    def _leave_out(self, inverse: Array, first: int) -> None:
        """Predict each network without any of its own timings (section 5.4.2, for blocks)."""
        groups: dict[Architecture, list[int]] = {}
        for number, network in enumerate(self.networks):
            groups.setdefault(network.architecture, []).append(first + number)
        found: list[tuple[NetworkSample, float, float]] = []
        for group in groups.values():
            covariance = np.linalg.inv(inverse[np.ix_(group, group)])
            missed = covariance @ self._alpha[group]
            own = self.networks[group[0] - first]
            found.append((own, float(missed[0]), float(np.sqrt(covariance[0, 0]))))
        squares = np.array([(missed / sd) ** 2 for _, missed, sd in found])
        self.surprise = surprise(squares)
        self.checks = [
            (own, float(np.expm1(-missed)), sd * surprise(np.delete(squares, number)))
            for number, (own, missed, sd) in enumerate(found)
        ]

    def _network_row(self, counts: Array, q: Array) -> tuple[Array, float, Array]:
        """Return the gradient of a network's log ms, log ms less s_0, and its shares of time."""
        entries = len(self.entries)
        slow = self._sensitivity() @ q
        times = counts * np.exp(np.clip(self._theta[:entries] + slow[self._family], -20.0, 20.0))
        log_factor, overhead = self._theta[-2], self._theta[-1] * self._overhead_unit
        scaled = np.exp(log_factor) * times
        extra = overhead * counts.sum()
        whole = max(scaled.sum() + extra, 0.1 * scaled.sum())
        shares = scaled / whole
        row = np.zeros(len(self._mean))
        row[:entries] = shares
        by_family = np.bincount(self._family, weights=shares, minlength=self._families)
        row[entries:-2] = np.outer(by_family, q).ravel()
        row[-2] = shares.sum()
        row[-1] = self._overhead_unit * counts.sum() / whole
        return row, float(np.log(whole)), times / times.sum()

    def _sensitivity(self) -> Array:
        entries, width = len(self.entries), len(REFERENCES)
        return np.asarray(self._theta[entries:-2].reshape(self._families, width))

    @property
    def factor(self) -> float:
        """F: the cost of memory and caches in a whole network, as a factor."""
        return float(np.exp(self._theta[-2]))

    @property
    def overhead_ms(self) -> float:
        """c: milliseconds added for each entry of a network."""
        return float(self._theta[-1] * self._overhead_unit)

    @cached_property
    def times_ms(self) -> Array:
        """Milliseconds of each entry at the base state, in the order of `entries`."""
        return np.exp(self._theta[: len(self.entries)])

    @cached_property
    def entry_sd(self) -> Array:
        """Relative standard deviation of each entry."""
        entries = len(self.entries)
        cross = self._cross[:entries]
        explained = np.einsum("ij,ij->i", cross, cho_solve(self._chol, cross.T).T)
        prior = np.diag(self._prior)[:entries]
        return np.asarray(np.sqrt(np.maximum(1e-8, prior - explained)))

    def entry_covariance(self) -> Array:
        """Return the posterior covariance of the entries' log ms, [entries, entries]."""
        entries = len(self.entries)
        cross = self._cross[:entries]
        explained = cross @ cho_solve(self._chol, cross.T)
        return np.asarray(self._prior[:entries, :entries] - explained)

    def network_slowdowns(self, counts: Array, states: Sequence[State]) -> Array:
        """Return a network's time in states over that at the base, [states]."""
        s0, q = self._features(states)
        by_family = np.bincount(self._family, weights=counts * self.times_ms)
        factors = np.exp(np.clip(s0[:, None] + q @ self._sensitivity().T, -5.0, 5.0))
        return np.asarray(factors @ by_family / by_family.sum())

    def predict(self, counts: Array) -> Prediction:
        """Return milliseconds of a network at the base state, with their standard deviation."""
        row, log_ms, shares = self._network_row(counts, np.zeros(len(REFERENCES)))
        first = len(self.samples)
        shared = UNEXPLAINED_SD**2 * _intersection(shares[None], self._shares)[0]
        log_ms += float(shared @ self._alpha[first:])
        reach = row @ self._cross
        reach[first:] += shared
        prior = row @ self._prior @ row + UNEXPLAINED_SD**2
        variance = prior - reach @ cho_solve(self._chol, reach)
        sd = self.surprise * float(np.sqrt(max(variance, 1e-8)))
        return Prediction(float(np.exp(log_ms)), sd)


def surprise(squares: Array) -> float:
    """Return the factor, at least 1, by which stated standard deviations are too small.

    `squares` are of the errors of checked networks over their stated standard deviations. The
    factor exceeds 1 on a machine whose timings repeat less well than the model assumes.
    """
    total = EXPECTED_CHECKS + len(squares)
    return float(np.sqrt(max(1.0, (EXPECTED_CHECKS + squares.sum()) / total)))


def _intersection(a: Array, b: Array) -> Array:
    """Return the histogram intersection of rows of shares, [len(a), len(b)]."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    return np.asarray(np.minimum(a[:, None], b[None]).sum(axis=2))
