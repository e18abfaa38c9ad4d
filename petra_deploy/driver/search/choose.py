"""Which candidates are good enough, and which of them are finalists.

A drop measured on a few hundred rows is noisy, and the best of many noisy candidates looks better
than it is. So the drops of all candidates are read together (`drops.py`), feasibility is judged by the estimate plus a
margin of its own standard error, and the
finalists are taken at growing margins: the fastest that is probably within the limit, the fastest
that is very probably, and the safest. The test split then decides, in that order.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from petra_deploy.core import files
from petra_deploy.core.drop import resolution as smallest_drop
from petra_deploy.core.outcome import Figure, Front, Goal, Measurement, Outcome
from petra_deploy.driver.search.drops import Drops

_TIE = 0.02  # a file half as large counts for 1.4% of speed, a tenth for 4.7%: what a trial's speed scatters by
_SHOWN = 5  # of the front, beside the finalists
ALONE = Drops()
MARGINS = (1.0, 2.0, 3.0)  # standard errors


def gain(outcome: Outcome, goal: Goal, baseline_bytes: int) -> float:
    """How many times better than the baseline at the goal's objective; above 1 is better."""
    if outcome.measurement is None or outcome.engine is None:
        return 0.0
    if goal.objective == "size":
        return float(baseline_bytes) / outcome.engine.bytes
    return _speedup(outcome.measurement, goal).known()


def rank(outcome: Outcome, goal: Goal, baseline_bytes: int) -> float:
    """The gain, where those that a measurement cannot tell apart are told apart by the other figure: size, or speed."""
    times = gain(outcome, goal, baseline_bytes)
    if not times or outcome.measurement is None or outcome.engine is None:
        return times
    smaller = baseline_bytes / outcome.engine.bytes
    other = _speedup(outcome.measurement, goal).known() if goal.objective == "size" else smaller
    return float(times * max(other, 1e-6) ** _TIE)


def better(outcome: Outcome, goal: Goal, baseline_bytes: int) -> bool:
    """Whether it beats the baseline for sure: a speedup that was measured with its whole interval."""
    if outcome.measurement is not None and goal.objective != "size":
        speedup = _speedup(outcome.measurement, goal)
        if speedup.origin == "measured" and speedup.low is not None:
            return outcome.engine is not None and speedup.low > 1.0
    return gains(outcome, goal, baseline_bytes)


def gains(outcome: Outcome, goal: Goal, baseline_bytes: int) -> bool:
    """Whether it beats the baseline as far as was seen."""
    return gain(outcome, goal, baseline_bytes) > 1.0


def _speedup(measurement: Measurement, goal: Goal) -> Figure:
    return measurement.speedups[0 if goal.objective == "latency" else -1]


def judged_by(goal: Goal, batches: Sequence[int]) -> tuple[int, ...]:
    """The batch size at which a candidate's gain is taken: the first for latency, the last for throughput."""
    return (batches[-1 if goal.objective == "throughput" else 0],)


def upper_drop(outcome: Outcome, margin: float, drops: Drops = ALONE) -> float:
    """The estimated drop in points, plus `margin` of its standard errors; infinite where there is none."""
    mean, error = drops.estimate(outcome)
    return mean + margin * error


def test_drop(outcome: Outcome) -> float:
    """The drop on the test split, points; infinite where it was not judged there."""
    return outcome.test.drop.known() if outcome.test and outcome.test.drop else math.inf


def feasible(outcome: Outcome, goal: Goal, drops: Drops = ALONE) -> bool:
    return outcome.ok and upper_drop(outcome, MARGINS[0], drops) <= goal.max_drop


def value(outcome: Outcome, goal: Goal, baseline_bytes: int, drops: Drops = ALONE) -> float:
    """What the sampler minimises: minus the log of the rank, plus the excess of the drop."""
    excess = max(0.0, upper_drop(outcome, MARGINS[0], drops) - goal.max_drop) / max(goal.max_drop, 0.25)
    return -math.log(max(rank(outcome, goal, baseline_bytes), 1e-6)) + 1.5 * math.sqrt(min(excess, 10.0))


def best(outcomes: Sequence[Outcome], goal: Goal, baseline_bytes: int) -> Outcome | None:
    """The fastest that is probably within the limit and better than the baseline, or None."""
    drops = Drops(outcomes)
    good = [o for o in outcomes if feasible(o, goal, drops) and gain(o, goal, baseline_bytes) > 1.0]
    return max(good, key=lambda o: rank(o, goal, baseline_bytes), default=None)


def finalists(outcomes: Sequence[Outcome], goal: Goal, baseline_bytes: int) -> tuple[Outcome, ...]:
    """At most three: the fastest at each margin, and the one most surely within the limit."""
    drops = Drops(outcomes)
    better = [o for o in outcomes if o.ok and gain(o, goal, baseline_bytes) > 1.0]
    chosen: list[Outcome] = []
    for margin in MARGINS:
        fit = [o for o in better if upper_drop(o, margin, drops) <= goal.max_drop and o not in chosen]
        if fit:
            chosen.append(max(fit, key=lambda o: rank(o, goal, baseline_bytes)))
    rest = [o for o in better if o not in chosen and upper_drop(o, 0.0, drops) <= goal.max_drop]
    if len(chosen) < 3 and rest:
        chosen.append(min(rest, key=lambda o: upper_drop(o, 2.0, drops)))
    done = [o for o in outcomes if o.ok]
    if not chosen and better:
        chosen.append(min(better, key=lambda o: upper_drop(o, 0.0, drops)))
    elif not chosen and done:  # nothing is better than the baseline: the nearest is judged, to say how near
        chosen.append(max(done, key=lambda o: gain(o, goal, baseline_bytes)))
    return tuple(sorted(chosen[:3], key=lambda o: -rank(o, goal, baseline_bytes)))


def no_candidate(outcomes: Sequence[Outcome], *, offered: bool) -> str:
    """Why there is no candidate at all, or an empty string where there was one; `offered`: there was what to try."""
    if not outcomes and offered:
        return "nothing that differs from the model as it came fitted into the time: give it more --time"
    if not outcomes:
        return "this model cannot gain here: none of the techniques applies to it, and the notes say why"
    failed = [outcome.failed for outcome in outcomes if outcome.failed]
    return f"all {len(failed)} candidates failed, the last at {failed[-1]}" if len(failed) == len(outcomes) else ""


def with_front(front: Front, outcomes: Sequence[Outcome], goal: Goal, baseline_bytes: int) -> Front:
    """`front` (the finalists) and after them the rest of what no other beats; those keep their selection scores."""
    judged = {files.canonical(o.strategy) for o in front.outcomes}
    rest = [o for o in pareto(outcomes, goal, baseline_bytes) if files.canonical(o.strategy) not in judged]
    better = [o for o in rest if gain(o, goal, baseline_bytes) > 1.0]
    return replace(front, outcomes=(*front.outcomes, *better[:_SHOWN]))


def pareto(outcomes: Sequence[Outcome], goal: Goal, baseline_bytes: int) -> tuple[Outcome, ...]:
    """The outcomes that no other beats in both gain and drop, fastest first."""
    drops = Drops(outcomes)
    done = [o for o in outcomes if o.ok and o.score is not None and o.score.drop is not None]
    front: list[Outcome] = []
    least = math.inf
    for outcome in sorted(done, key=lambda o: (-gain(o, goal, baseline_bytes), upper_drop(o, 0.0, drops))):
        if upper_drop(outcome, 0.0, drops) < least:
            least = upper_drop(outcome, 0.0, drops)
            front.append(outcome)
    return tuple(front)


def resolution(drop: Figure | None, error: float, rows: int) -> str:
    """A sentence on what drop so many rows can tell apart."""
    if drop is None or error <= 0:
        return f"the selection split has {rows} rows"
    return (
        f"the selection split has {rows} rows: a drop is known to about ±{smallest_drop(error):.1f} points; "
        "more rows would let the search go further"
    )
