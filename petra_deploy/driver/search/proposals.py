"""What is worth asking next, beside the sampler's own points, in view of one outcome.

A shape that was just trained is in the store, so trying it in another precision costs seconds; and
a candidate that is faster than the best but a little too lossy often only wants more training, which goes on from
where it ended, or another.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from petra_deploy.core import files
from petra_deploy.core.outcome import Goal, Outcome
from petra_deploy.driver.search import choose
from petra_deploy.driver.search.cost_model import before_last, trainings
from petra_deploy.driver.search.drops import Drops
from petra_deploy.driver.search.encoding import Encoding

_FINAL = ("timeout", "memory", "diverged")  # another precision would not help
_HOPED = 2.0  # points that training on may bring, before any has been seen
_TWICE, _BEHIND = 2, 0.9  # a precision that reached less than this share of the best, so often in a row
_AS_LARGE = 1.3  # times the bytes of an engine, at most: shapes that are about as large
_AGAIN = 2  # further trainings, each as long as all before


@dataclass(frozen=True)
class Proposal:
    genome: dict[str, float]
    epochs: float | None = None  # the very number of epochs, so that the trained module is found again
    again: Sequence[float] = ()  # epochs of the trainings after it
    worth: float = 0.0  # the gain of what it was derived from; 0: always worth asking


def after(
    outcome: Outcome,
    genome: dict[str, float],
    best_before: Outcome | None,
    goal: Goal,
    baseline_bytes: int,
    encoding: Encoding,
    drops: Drops,
    outcomes: Sequence[Outcome] = (),
) -> list[Proposal]:
    """What to enqueue; nothing where the outcome teaches nothing of the kind."""
    trained = trainings(outcome.strategy)
    epochs, again = (trained[0] if trained else None), trained[1:]
    if outcome.failed is not None and outcome.failed.job == "transform" and outcome.failed.kind not in _FINAL:
        return [Proposal(other, epochs, again) for other in encoding.neighbours(genome)[-1:]]
    if not outcome.ok or (encoding.shrinks and not encoding.shrunk(outcome.strategy)):
        return []  # quantization alone is the first rung; what shrinks is tried before its variants
    record = choose.gain(best_before, goal, baseline_bytes) if best_before else 1.0
    worth = choose.gain(outcome, goal, baseline_bytes)
    if choose.feasible(outcome, goal, drops):
        if worth <= record * 0.7:
            return []
        slow = _slow(outcome, encoding.quantizers(), outcomes, lambda o: choose.gain(o, goal, baseline_bytes))
        served = encoding.serving(genome, _alternatives(outcome))
        return [Proposal(other, epochs, again, worth) for other in (*encoding.neighbours(genome, slow), *served)]
    excess = choose.upper_drop(outcome, 0.0, drops) - goal.max_drop
    if epochs and worth > record and len(again) < _AGAIN and excess <= _hope(drops, outcomes):
        others = [] if again else [Proposal(other, epochs, worth=worth) for other in encoding.trained_otherwise(genome)]
        return [Proposal(genome, epochs, (*again, sum(trained)), worth), *others]
    return []


def _alternatives(outcome: Outcome) -> dict[str, str]:
    """Settings of the runtime that may be faster for this very engine, as its build tells (name -> value)."""
    told = outcome.engine.facts.get("alternatives") if outcome.engine else None
    return {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) else {}


def _slow(
    outcome: Outcome, quantizers: Collection[str], outcomes: Sequence[Outcome], gain: Callable[[Outcome], float]
) -> frozenset[str | None]:
    """The precisions that were well behind another of the same shape, the last two times, among shapes about as large.

    The smaller a network, the less integers gain: what was slow of one a third as large again says nothing.
    """
    shapes: dict[bytes, dict[str | None, Outcome]] = {}
    for each in (o for o in outcomes if o.ok):
        rest = tuple(step for step in each.strategy.steps if step.technique not in quantizers)
        shape = files.canonical(replace(each.strategy, steps=rest))
        shapes.setdefault(shape, {})[_precision(each, quantizers)] = each
    own, most = _precision(outcome, quantizers), _AS_LARGE * _bytes(outcome)
    alike = [met for met in shapes.values() if own in met and _bytes(met[own]) <= most]
    found = set()
    for precision in (None, *quantizers):
        shares = [gain(met[precision]) / max(map(gain, met.values())) for met in alike if precision in met]
        if len(shares) >= _TWICE and max(shares[-_TWICE:]) < _BEHIND:
            found.add(precision)
    return frozenset(found)


def _precision(outcome: Outcome, quantizers: Collection[str]) -> str | None:
    return next((step.technique for step in outcome.strategy.steps if step.technique in quantizers), None)


def _bytes(outcome: Outcome) -> int:
    return outcome.engine.bytes if outcome.engine else 0


def _hope(drops: Drops, outcomes: Sequence[Outcome]) -> float:
    """How many points another training may bring: as many as those of this run brought on average."""
    known = {files.canonical(o.strategy): drops.estimate(o)[0] for o in outcomes if o.ok}
    gains = [_HOPED]
    for outcome in outcomes:
        if outcome.ok and len(trainings(outcome.strategy)) > 1:
            before = known.get(files.canonical(before_last(outcome.strategy)))
            gains += [] if before is None else [before - drops.estimate(outcome)[0]]
    return sum(gains) / len(gains)
