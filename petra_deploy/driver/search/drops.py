"""The drops of all candidates together: what one measures on few rows, the others help to read.

    drops = Drops(outcomes)
    mean, error = drops.estimate(outcome)        # points

A drop measured on n rows is known to about 100 sqrt(flips) / n points, and the best of many noisy ones looks better
than it is. How far a candidate's outputs lie from the original's (core/divergence.py) is measured on the same
rows with far less noise, and the drop follows it. So the drop is taken to be `slope` times the divergence
plus the candidate's own part, whose variance grows with the divergence. Both variances are found from all candidates
(empirical Bayes, by expectation-maximization); an estimate is the mean of line and measurement, each by how sure it
is. On the trials of an LSTM, an MLP and a ResNet, judged on other rows, it left two thirds of the error that the
measurement alone had on 100 rows, and four fifths on 360 (docs/decisions/0017-drops-are-read-together.md).
"""

import math
from collections.abc import Sequence

import numpy as np

from petra_deploy.core.outcome import Outcome

_ROUNDS = 30
_WIDE = 3.0  # points: the prior's standard deviation of the line at the mean divergence
_LEAST = 0.02  # points^2: of the candidates' own part
_SHARED = 3.0  # candidates share their rows, so together they are as sure of the line as a third of them
_UNSURE = 1.4  # an estimate's error over what the model says: measured 1.2 to 1.5, for the same reason


class Drops:
    """Fitted to the outcomes that have both figures; without two of them an estimate is the measurement."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        told = [o.score for o in outcomes if o.ok and o.score and o.score.drop_error and o.score.divergence]
        self._scale = float(np.mean([s.divergence for s in told])) if len(told) > 1 else 0.0
        if not self._scale:
            return
        far = np.array([s.divergence for s in told]) / self._scale
        measured = np.array([s.drop.known() for s in told if s.drop])
        noise = np.array([s.drop_error**2 for s in told])
        self._own = 1.0
        for _ in range(_ROUNDS):
            weight = 1.0 / (_SHARED * noise + self._own * far)
            precision = float(np.sum(weight * far**2)) + 1.0 / _WIDE**2
            self._slope = float(np.sum(weight * far * measured)) / precision
            left = 1.0 / (1.0 / (self._own * far) + 1.0 / noise)
            part = left / noise * (measured - self._slope * far)
            self._own = max(float(np.mean((part**2 + left) / far)), _LEAST)
        self._unsure = 1.0 / precision

    def estimate(self, outcome: Outcome) -> tuple[float, float]:
        """(drop, its standard error) in points; infinite where none was measured."""
        score = outcome.score
        if score is None or score.drop is None:
            return math.inf, 0.0
        measured, noise = score.drop.known(), score.drop_error**2
        if not self._scale or not score.divergence or not noise:
            return measured, score.drop_error
        far = score.divergence / self._scale
        line, spread = self._slope * far, self._own * far + self._unsure * far**2
        share = spread / (spread + noise)
        error = _UNSURE * math.sqrt(spread * noise / (spread + noise))
        return line + share * (measured - line), min(error, score.drop_error)
