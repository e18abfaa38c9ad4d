"""The drops of all candidates together: what one measures on few rows, the others help to read.

    drops = Drops(outcomes)
    mean, error = drops.estimate(outcome)        # points

A drop measured on n rows is known to about 100 sqrt(flips) / n points, and the best of many noisy ones looks better
than it is. How far a candidate's outputs lie from the original's (core/divergence.py) is measured on the same
rows with far less noise, and the drop follows it. So the drop is taken to be a slope times the divergence
plus the candidate's own part, whose variance grows with the divergence. For each estimate both are found from the
candidates that lie about as far (empirical Bayes, by expectation-maximization; a kernel in the log of the divergence):
one that was ruined says nothing of those that were not. An estimate is the mean of line and measurement, each by how
sure it is. On the trials of an LSTM and an MLP, judged on other rows, it left seven tenths of the error that the
measurement alone had, on 100 rows as on 300 (docs/decisions/0017-drops-are-read-together.md).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.outcome import Outcome

_ROUNDS = 30
_WIDE = 3.0  # points: the prior's standard deviation of the line at the mean divergence
_NEAR = 1.0  # of the kernel, in natural logarithms of the divergence
_LEAST = 0.02  # points^2: of the candidates' own part
_NONE = 1e-9  # keeps a place without neighbours from a division by zero
_SHARED = 3.0  # candidates share their rows, so together they are as sure of the line as a third of them
_UNSURE = 1.4  # an estimate's error over what the model says: measured 1.2 to 1.5, for the same reason

Array = NDArray[np.float64]


class Drops:
    """Fitted to the outcomes that have both figures; without two of them an estimate is the measurement."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        told = [o.score for o in outcomes if o.ok and o.score and o.score.drop_error and o.score.divergence]
        self._scale = float(np.mean([s.divergence for s in told])) if len(told) > 1 else 0.0
        if not self._scale:
            return
        self._far = np.array([s.divergence for s in told]) / self._scale
        self._measured = np.array([s.drop.known() for s in told if s.drop])
        self._noise = np.array([s.drop_error**2 for s in told])
        self._lines = dict(zip(self._far.tolist(), self._fitted(self._far), strict=True))

    def estimate(self, outcome: Outcome) -> tuple[float, float]:
        """(drop, its standard error) in points; infinite where none was measured."""
        score = outcome.score
        if score is None or score.drop is None:
            return math.inf, 0.0
        measured, noise = score.drop.known(), score.drop_error**2
        if not self._scale or not score.divergence or not noise:
            return measured, score.drop_error
        far = score.divergence / self._scale
        slope, own, unsure = self._lines[far] if far in self._lines else self._fitted(np.array([far]))[0]
        line, spread = slope * far, own * far + unsure * far**2
        share = spread / (spread + noise)
        error = _UNSURE * math.sqrt(spread * noise / (spread + noise))
        return line + share * (measured - line), min(error, score.drop_error)

    def _fitted(self, places: Array) -> list[tuple[float, float, float]]:
        """(slope, variance of the own part, variance of the slope) at each of `places`, by the candidates near it."""
        near = np.exp(-0.5 * (np.log(self._far / places[:, None]) / _NEAR) ** 2)  # (places, candidates)
        own = np.ones((len(places), 1))
        for _ in range(_ROUNDS):
            weight = near / (_SHARED * self._noise + own * self._far)
            precision = np.sum(weight * self._far**2, axis=1, keepdims=True) + 1.0 / _WIDE**2
            slope = np.sum(weight * self._far * self._measured, axis=1, keepdims=True) / precision
            left = 1.0 / (1.0 / (own * self._far) + 1.0 / self._noise)
            part = left / self._noise * (self._measured - slope * self._far)
            parts = np.sum(near * (part**2 + left) / self._far, axis=1, keepdims=True)
            own = np.maximum(parts / (near.sum(axis=1, keepdims=True) + _NONE), _LEAST)
        return [tuple(row) for row in np.hstack([slope, own, 1.0 / precision]).tolist()]
