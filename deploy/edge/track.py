"""Tracks objects through a video: ByteTrack (Zhang et al., ECCV 2022, arXiv:2110.06864).

Every box is used: first those of high score are matched with the tracks, then those of low score
with the tracks that are left, since an object that is half hidden keeps its position but not
its score. A Kalman filter of constant velocity predicts where a track is. Needs numpy only; every
bundle's `detect.py` carries this file's text.
"""

import numpy as np

from .card import CalibrationRule
from .postprocess import calibrated, of_head, overlaps
from .session import Array

LOW_SHARE = 1 / 3
"""Lowest score that continues a track, as a share of the lowest that is reported.

Of scores as the head gives them: calibrated ones of half-hidden objects are next to 0.
"""
NEW_SCORE = 0.1
"""How far above the lowest reported score a box must be to begin a track."""
FIRST_IOU, SECOND_IOU, TENTATIVE_IOU = 0.2, 0.5, 0.3
"""Least overlap of a match: of high scores, of low ones, of tracks seen once."""
LOST_S = 1.0
"""How long a lost track may be found again."""
POSITION_STD, VELOCITY_STD = 1 / 20, 1 / 160
"""Standard deviations of the filter, as shares of a box's height."""


class Track:
    """One object: centre x and y, aspect ratio and height, and the velocities of these."""

    def __init__(self, box: Array, label: int, frame: int) -> None:
        """Begin at a box, with an unknown velocity."""
        self.label, self.seen, self.hits = label, frame, 1
        self.number = 0  # assigned when it is first reported
        self.mean = np.concatenate([_centred(box), np.zeros(4)])
        height = self.mean[3]
        spread = np.array([2, 2, 0, 2]) * POSITION_STD * height + np.array([0, 0, 1e-2, 0])
        drift = np.array([10, 10, 0, 10]) * VELOCITY_STD * height + np.array([0, 0, 1e-5, 0])
        self.covariance = np.diag(np.concatenate([spread, drift]) ** 2)

    def predict(self, lost: bool) -> None:
        """Move by one frame; a lost one keeps its height."""
        if lost:
            self.mean[7] = 0.0
        height = self.mean[3]
        noise = np.concatenate(
            [
                np.array([1, 1, 0, 1]) * POSITION_STD * height + np.array([0, 0, 1e-2, 0]),
                np.array([1, 1, 0, 1]) * VELOCITY_STD * height + np.array([0, 0, 1e-5, 0]),
            ]
        )
        self.mean = MOTION @ self.mean
        self.covariance = MOTION @ self.covariance @ MOTION.T + np.diag(noise**2)

    def update(self, box: Array, frame: int) -> None:
        """Correct by a box that was found."""
        height = self.mean[3]
        noise = np.array([1, 1, 0, 1]) * POSITION_STD * height + np.array([0, 0, 1e-1, 0])
        projected = self.covariance[:4, :4] + np.diag(noise**2)
        gain = np.linalg.solve(projected, self.covariance[:4]).T
        self.mean = self.mean + gain @ (_centred(box) - self.mean[:4])
        self.covariance = self.covariance - gain @ projected @ gain.T
        self.seen, self.hits = frame, self.hits + 1

    @property
    def box(self) -> Array:
        """Corners, xyxy."""
        x, y, aspect, height = self.mean[:4]
        width = aspect * height
        return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


MOTION = np.eye(8) + np.eye(8, k=4)


def _centred(box: Array) -> Array:
    x0, y0, x1, y1 = (float(side) for side in box)
    height = max(y1 - y0, 1e-3)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / height, height])


class Tracker:
    """Gives each object a number, frame by frame."""

    def __init__(self, fps: float, limits: Array, maps: CalibrationRule | None = None) -> None:
        """Begin without tracks; `limits` are the lowest scores reported, by class index [K].

        Boxes of at least these scores are matched first, lower ones only continue tracks.
        `maps` is the calibration of the scores. Of a source without a rate 30 frames are a second.
        """
        every = np.arange(len(limits))
        self._limits = limits
        self._low = calibrated(LOW_SHARE * of_head(limits, every, maps), every, maps)
        self._patience = max(1, round(LOST_S * (fps if fps > 0 else 30.0)))
        self._tracks: list[Track] = []
        self._frame = 0
        self.count = 0
        """Objects that were tracked so far."""

    def update(self, boxes_N4: Array, scores_N: Array, labels_N: Array) -> tuple[Array, Array]:
        """Return the rows of the boxes that belong to a track, and the tracks' numbers."""
        self._frame += 1
        found: dict[int, Track] = {}
        for track in self._tracks:
            track.predict(lost=track.seen < self._frame - 1)
        confirmed = [track for track in self._tracks if track.hits > 1 or track.seen == 1]
        tentative = [track for track in self._tracks if track not in confirmed]
        limits_N = self._limits[labels_N]
        sufficient = scores_N >= limits_N
        high = [int(row) for row in np.flatnonzero(sufficient)]
        weak = (scores_N >= self._low[labels_N]) & ~sufficient
        low = [int(row) for row in np.flatnonzero(weak)]

        def match(tracks: list[Track], rows: list[int], least: float, fused: bool) -> list[int]:
            """Match what may be matched; return the rows that are left."""
            overlap = _overlaps(tracks, boxes_N4[rows], labels_N[rows])
            likeness = overlap * scores_N[rows][None] if fused else overlap
            for i, j in assign(1.0 - likeness):
                if likeness[i, j] >= least:
                    found[rows[j]] = tracks[i]
                    tracks[i].update(boxes_N4[rows[j]], self._frame)
            return [row for row in rows if row not in found]

        high = match(confirmed, high, FIRST_IOU, True)
        recent = [t for t in confirmed if t.seen == self._frame - 1 and t not in found.values()]
        match(recent, low, SECOND_IOU, False)
        high = match(tentative, high, TENTATIVE_IOU, True)
        for row in high:
            limit = limits_N[row]
            if scores_N[row] >= min(limit + NEW_SCORE, (limit + 1.0) / 2):
                begun = Track(boxes_N4[row], int(labels_N[row]), self._frame)
                self._tracks.append(begun)
                found[row] = begun
        self._tracks = [
            track
            for track in self._tracks
            if track.seen == self._frame
            or ((track.hits > 1 or track.seen == 1) and self._frame - track.seen <= self._patience)
        ]
        shown = {row: t for row, t in found.items() if t.hits > 1 or self._frame == 1}
        rows = np.array(sorted(shown), dtype=np.int64)
        ids = np.array([self._named(shown[int(row)]) for row in rows], dtype=np.int64)
        return rows, ids

    def _named(self, track: Track) -> int:
        if not track.number:
            self.count += 1
            track.number = self.count
        return track.number


def _overlaps(tracks: list[Track], boxes_N4: Array, labels_N: Array) -> Array:
    """Return IoU of tracks and boxes, 0 where their classes differ, [tracks, boxes]."""
    if not tracks or not len(boxes_N4):
        return np.zeros((len(tracks), len(boxes_N4)))
    same = np.array([track.label for track in tracks])[:, None] == np.asarray(labels_N)[None]
    found: Array = overlaps(np.stack([track.box for track in tracks]), boxes_N4) * same
    return found


def assign(costs: Array) -> list[tuple[int, int]]:
    """Return the pairs of rows and columns of least total cost (shortest augmenting paths)."""
    costs = np.asarray(costs, dtype=np.float64)
    if not costs.size:
        return []
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assign(costs.T))
    rows, columns = costs.shape
    row_of = np.zeros(columns + 1, dtype=np.int64)  # 1-based; 0 is none
    potential_row, potential_column = np.zeros(rows + 1), np.zeros(columns + 1)
    for row in range(1, rows + 1):
        row_of[0] = row
        column = 0
        shortest = np.full(columns + 1, np.inf)
        came_from = np.zeros(columns + 1, dtype=np.int64)
        done = np.zeros(columns + 1, dtype=bool)
        while row_of[column]:
            done[column] = True
            current = row_of[column]
            reduced = costs[current - 1] - potential_row[current] - potential_column[1:]
            nearer = ~done[1:] & (reduced < shortest[1:])
            shortest[1:][nearer] = reduced[nearer]
            came_from[1:][nearer] = column
            waiting = np.where(done, np.inf, shortest)
            waiting[0] = np.inf
            following = int(waiting.argmin())
            step = waiting[following]
            potential_row[row_of[done]] += step
            potential_column[done] -= step
            shortest[~done] -= step
            column = following
        while column:
            before = came_from[column]
            row_of[column] = row_of[before]
            column = int(before)
    return sorted((int(row_of[c]) - 1, c - 1) for c in range(1, columns + 1) if row_of[c])
