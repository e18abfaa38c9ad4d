"""What is worth asking next, beside the sampler's own points, in view of one outcome.

A shape that was just trained is in the store, so trying it in another precision costs seconds; and
a candidate that is faster than the best but a little too lossy often only wants longer training.
"""

from dataclasses import dataclass

from petra_deploy.core.outcome import Goal, Outcome
from petra_deploy.driver.search import choose
from petra_deploy.driver.search.cost_model import epochs_of
from petra_deploy.driver.search.encoding import Encoding

_FINAL = ("timeout", "memory", "diverged")  # another precision would not help
_CLOSE = 2.5  # points above the limit


@dataclass(frozen=True)
class Proposal:
    genome: dict[str, float]
    epochs: float | None = None  # the very number of epochs, so that the trained module is found again
    worth: float = 0.0  # the gain of what it was derived from; 0: always worth asking


def after(
    outcome: Outcome,
    genome: dict[str, float],
    best_before: Outcome | None,
    goal: Goal,
    baseline_bytes: int,
    encoding: Encoding,
) -> list[Proposal]:
    """What to enqueue; nothing where the outcome teaches nothing of the kind."""
    epochs = epochs_of(outcome.strategy) or None
    if outcome.failed is not None and outcome.failed.job == "transform" and outcome.failed.kind not in _FINAL:
        return [Proposal(other, epochs) for other in encoding.neighbours(genome)[-1:]]
    if not outcome.ok or (encoding.shrinks and not encoding.shrunk(outcome.strategy)):
        return []  # quantization alone is the first rung; what shrinks is tried before its variants
    record = choose.gain(best_before, goal, baseline_bytes) if best_before else 1.0
    worth = choose.gain(outcome, goal, baseline_bytes)
    if worth <= record * 0.7:
        return []
    if choose.feasible(outcome, goal):
        return [Proposal(other, epochs, worth) for other in encoding.neighbours(genome)]
    if choose.upper_drop(outcome, 0.0) <= goal.max_drop + _CLOSE:
        return [Proposal(longer, worth=worth) for longer in encoding.longer(genome)]
    return []
