"""Finalists in the other runtimes of their target: whichever runs one fastest ships it.

    finalists = with_variants(finalists, goal, case, baseline, session)
    front = confirm(finalists, ...)          # all are measured in turns and judged alike
    said = notes(front, goal, size)

A variant is the same strategy with `backend` set, and with the options that the other runtime settles
(plain Q/DQ pairs in place of ONNX Runtime's own operators). What was trained is found, not trained again;
export, quantization, build and score are the variant's own. The model as it came goes along in each
runtime, so that a speedup that is the runtime's is not taken for the search's.
"""

from collections.abc import Sequence
from dataclasses import replace

from petra_deploy.core.job import Inspect, Limits
from petra_deploy.core.outcome import Failed, Front, Goal, Outcome
from petra_deploy.core.plan import Offer
from petra_deploy.core.strategy import Strategy
from petra_deploy.driver.confirm import FEWEST, SECONDS, round_seconds
from petra_deploy.driver.evaluate import Case, evaluate
from petra_deploy.driver.place import on
from petra_deploy.driver.search import choose
from petra_deploy.driver.session import Session

_SHARE = 0.8  # of the time left may be expected to go into rounds


def with_variants(
    finalists: Sequence[Outcome], goal: Goal, case: Case, baseline: Outcome, session: Session
) -> tuple[Outcome, ...]:
    """The finalists, and after them their variants; what is left out is said.

    A variant gets one round of measurement first. Where the time is short, of each finalist only the runtime
    that it found faster goes on; the fastest finalist's variants are made in any case.
    """
    made: list[tuple[Outcome | None, Outcome]] = []  # the finalist, or None for the model as it came; its variant
    came = [] if any(not outcome.strategy.steps for outcome in finalists) else [None]
    racing = replace(case, batches=choose.judged_by(goal, case.batches))
    for runtime in case.place.other_runtimes:
        session.say(f"trying the finalists in {runtime}")
        target = on(case.place.target, runtime)
        inspected = session.run(Inspect(workload=case.workload, target=target, limits=session.limits()))
        if isinstance(inspected, Failed):
            session.say(f"{runtime} was not tried: {inspected.reason}", "warning")
            continue
        for number, outcome in enumerate((*finalists, *came)):
            original = outcome or baseline
            moved = variant(original.strategy, runtime, inspected.value.offers)
            if isinstance(moved, str):
                session.say(f"{original.strategy.describe()} was not tried in {runtime}: {moved}", "note")
            elif number and session.left() < baseline.seconds + _turns(len(finalists), baseline):
                session.say(f"no time is left to try more finalists in {runtime}: give it more --time", "note")
                break
            else:
                limits = Limits(seconds=max(session.left(), 60.0))
                found = evaluate(moved, replace(original.fidelity, rounds=1), racing, session.run, limits)
                if _worth(found, original, goal, session):
                    made.append((outcome, found))
    everything = (*finalists, *(found for _, found in made))
    if not made or not finalists or _turns(len(everything), baseline) <= session.left():
        return everything
    session.say("the time is short: each finalist goes on in the runtime that one round found faster", "note")
    return tuple(
        max((one, *(found for of, found in made if of is one)), key=lambda o: _gain(o, goal, 1)) for one in finalists
    )


def _turns(count: int, baseline: Outcome) -> float:
    """Seconds that measuring so many in turns may be expected to take at least, and a little more."""
    return FEWEST * count * round_seconds(baseline, SECONDS) / _SHARE


def variant(strategy: Strategy, runtime: str, offers: Sequence[Offer]) -> Strategy | str:
    """`strategy` for `runtime`, where the techniques are `offers`; or why there is none, in a few words."""
    known = {offer.technique: offer for offer in offers}
    if missing := [step.technique for step in strategy.steps if step.technique not in known]:
        return f"it has no {', '.join(missing)}"
    steps = (replace(step, options={**step.options, **known[step.technique].fixed}) for step in strategy.steps)
    return replace(strategy, steps=tuple(steps), runtime={}, backend=runtime)


def _worth(made: Outcome, original: Outcome, goal: Goal, session: Session) -> bool:
    """Whether the test split may be opened for it: its drop is within the limit, or no larger than its original's."""
    if made.failed is not None:
        session.say(f"{made.strategy.describe()} failed at {made.failed}", "note")
        return False
    if not made.strategy.steps or choose.feasible(made, goal):
        return True
    if choose.upper_drop(made, choose.MARGINS[0]) <= choose.upper_drop(original, choose.MARGINS[0]):
        return True
    session.say(f"{made.strategy.describe()} drops more than is allowed: it is left out", "note")
    return False


def notes(front: Front, goal: Goal, baseline_bytes: int) -> tuple[str, ...]:
    """What the other runtimes came to, a sentence each: for the manifest of what ships."""
    shipped, said = front.chosen, []
    for runtime in dict.fromkeys(o.strategy.backend for o in front.outcomes if o.ok and o.strategy.backend):
        theirs = [o for o in front.outcomes if o.ok and o.strategy.backend == runtime]
        best = max((o for o in theirs if o.strategy.steps), key=lambda o: _gain(o, goal, baseline_bytes), default=None)
        plain = next((o for o in theirs if not o.strategy.steps), None)
        if best is not None and (shipped is None or shipped.strategy.backend != runtime):
            said.append(f"in {runtime} the fastest finalist reached {_gain(best, goal, baseline_bytes):.2f}x")
        if plain is not None:
            alone = _gain(plain, goal, baseline_bytes)
            over = f"; what ships is {_gain(shipped, goal, baseline_bytes) / alone:.2f}x over that" if shipped else ""
            said.append(
                f"the model as it came runs {alone:.2f}x as fast in {runtime} as in the baseline's runtime{over}"
            )
    if shipped is not None and shipped.strategy.backend:
        own = [o for o in front.outcomes if o.ok and not o.strategy.backend and o.test is not None]
        best = max(own, key=lambda o: _gain(o, goal, baseline_bytes), default=None)
        if best is not None:
            reached = f"{_gain(best, goal, baseline_bytes):.2f}x"
            said.append(f"in the baseline's own runtime the fastest finalist reached {reached}")
    return tuple(said)


def _gain(outcome: Outcome, goal: Goal, baseline_bytes: int) -> float:
    """Of time, whatever the objective: a file is as large in one runtime as in the other."""
    return choose.gain(
        outcome, replace(goal, objective="latency") if goal.objective == "size" else goal, baseline_bytes
    )
