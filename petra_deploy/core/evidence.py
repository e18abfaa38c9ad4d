"""The gate's test: evidence that the middle of some log ratios lies above a limit, which one may ask after every one.

    decide([0.09, 0.08, 0.10, 0.09, 0.08, 0.09], math.log(1.05))         # "fail": slower than the limit
    low, high = interval(logs)                                           # the same test inverted

The average of two e-values, which is one: of the t-mixture (core/stats.py), the sharper where rounds scatter alike,
and of the signs, which one wild round among good ones cannot take in. Both suppose that a round is as likely to lie
above the truth as below it. Sources: Ramdas, Gruenwald, Vovk and Shafer, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38 (2023), for averages of e-values; Ville (1939) for looking early.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from petra_deploy.core import stats

Verdict = Literal["fail", "pass", "open"]


def decide(logs: Sequence[float], limit: float, *, alpha: float = stats.ALPHA) -> Verdict:
    """Whether the log ratios lie above `limit` ("fail"), below it ("pass"), or that is not yet known ("open").

    May be asked after every round; either error stays at `alpha` / 2 for good. Several gates in one build share
    alpha: give each its part.
    """
    if e_value(logs, limit) >= 2 / alpha:
        return "fail"
    return "pass" if e_value([-x for x in logs], -limit) >= 2 / alpha else "open"


def interval(logs: Sequence[float], *, alpha: float = stats.ALPHA) -> tuple[float, float]:
    """All limits that `decide` leaves open, at any time; the median is one of them."""
    middle, turned, enough = statistics.median(logs), [-x for x in logs], 2 / alpha
    return (
        stats.greatest_bound(logs, enough, e_value, middle),
        -stats.greatest_bound(turned, enough, e_value, -middle),
    )


def e_value(values: Sequence[float], bound: float) -> float:
    """Evidence that the values lie above `bound`: under the contrary it averages at most 1; 0 before the fourth."""
    if len(values) < stats.FEWEST_ROUNDS:
        return 0.0
    return (stats.e_value(values, bound) + sign_e_value(sum(x > bound for x in values), len(values))) / 2


def sign_e_value(above: int, n: int) -> float:
    """That more than half of all values lie above, of which `above` of `n` do: a uniform mixture of coins.

    The integral over p from 1/2 to 1 of 2 (2p)^above (2 (1 - p))^(n - above), in closed form.
    """
    return sum(math.comb(n + 1, i) for i in range(above + 1)) / ((n + 1) * math.comb(n, above))
