"""Whether the remaining epochs of a training fit into its time budget."""

from collections import deque
from dataclasses import dataclass
from statistics import median
from time import monotonic

STEPS = 50
"""Last steps, over whose times the median is taken: the load of a machine changes."""
GAPS = 5
"""The same for the times between epochs, in which files are written."""
LATE = 0.03
"""Share of its time by which a training may end late, so that jitter does not shorten it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The time that a training may take."""

    seconds: float
    """From its start, or from when it is resumed."""
    fewest_epochs: int = 1
    """Epochs that are trained in any case."""


class Deadline:
    """Times the steps of a training."""

    def __init__(self, budget: Budget, steps_an_epoch: int) -> None:
        self.budget, self.steps_an_epoch = budget, steps_an_epoch
        self._end = monotonic() + budget.seconds
        self._reported = False
        """Whether it was reported that even the fewest epochs end late."""
        self._last: float | None = None
        self._first_s = 0.0
        """Of the first steps of all epochs, the slowest: it waited for the loading processes."""
        self._begins = False
        """Whether the next step is the first of an epoch."""
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._gaps: deque[float] = deque(maxlen=GAPS)

    def start_epoch(self) -> None:
        """Count the time since the last step as a gap between two epochs."""
        now = monotonic()
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last, self._begins = now, True

    def step(self) -> None:
        """Record the time of the step that ends now."""
        now = monotonic()
        assert self._last is not None
        self._steps.append(now - self._last)
        if self._begins:
            self._first_s = max(self._first_s, now - self._last)
        self._last, self._begins = now, False

    @property
    def left_s(self) -> float:
        """Seconds until the end of the budget."""
        return self._end - monotonic()

    @property
    def step_s(self) -> float:
        """Median seconds of the last steps."""
        return median(self._steps)

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch, with the gap after it."""
        return self.step_s * self.steps_an_epoch + (median(self._gaps) if self._gaps else 0.0)

    @property
    def room_s(self) -> float:
        """Seconds by which a plan may end late: a shorter one starts the loading processes anew."""
        return LATE * self.budget.seconds + max(0.0, self._first_s - self.step_s)

    def fitting(self, done: int, epochs: int) -> int:
        """Return how many epochs in all fit, `epochs` at most, when `done` are trained.

        At least one more, and the fewest of the budget. Less late than `room_s` is in time.
        """
        if not self._steps or self.late_s(done, epochs) <= self.room_s:
            return epochs
        fitting = done + int(max(0.0, self.left_s) / self.epoch_s)
        return min(epochs, max(fitting, done + 1, self.budget.fewest_epochs))

    def late_s(self, done: int, epochs: int) -> float:
        """Return by how many seconds a training of so many epochs in all ends too late, or 0."""
        if not self._steps:
            return 0.0
        return max(0.0, (epochs - done) * self.epoch_s - self.left_s)

    def worth_reporting(self, done: int, before: int, after: int) -> bool:
        """Return whether to report a plan of `after` epochs: once, unless it is a shorter one."""
        late_s = self.late_s(done, before)
        if after == before and (self._reported or late_s < 1 or late_s <= self.room_s):
            return False
        self._reported = True
        return True

    def describe(self, done: int, before: int, after: int) -> str:
        """Return the line that is printed where `before` epochs in all do not fit."""
        facts = (
            f"{max(0.0, self.left_s):.0f} s are left, {before - done} epochs of "
            f"{self.epoch_s:.1f} s do not fit (a step takes {self.step_s:.2f} s)"
        )
        late_s = self.late_s(done, after)
        late = f", it ends {late_s:.0f} s late" if late_s >= 1 else ""
        if after < before:
            return f"{after} epochs instead of {before}: {facts}{late}"
        return f"keeps {before} epochs, the fewest: {facts}{late}"
