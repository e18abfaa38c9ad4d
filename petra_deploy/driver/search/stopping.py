"""When failures say that going on is pointless."""

from collections.abc import Callable, Collection, Sequence

from petra_deploy.core.outcome import Outcome

_SAME_IN_A_ROW = 5
_FIRST = 10
_NO_GAIN = 0.97


def broken(
    outcomes: Sequence[Outcome], techniques: Collection[str], gain: Callable[[Outcome], float]
) -> frozenset[str]:
    """Those quantizers of `techniques` that are not worth asking.

    One that failed whenever it was tried, twice at least: the next stands in. And all of them where
    the first, alone on the whole model, made it no better: on a smaller one INT8 gains less still.
    """
    alone = [o for o in outcomes if o.ok and [s.technique for s in o.strategy.steps] == list(techniques)[:1]]
    if any(gain(outcome) < _NO_GAIN for outcome in alone):
        return frozenset(techniques)
    found = set()
    for technique in techniques:
        tried = [o for o in outcomes if any(step.technique == technique for step in o.strategy.steps)]
        if len(tried) >= 2 and all(o.failed and o.failed.job == "transform" for o in tried):
            found.add(technique)
    return frozenset(found)


def hopeless(outcomes: Sequence[Outcome]) -> str | None:
    """Why the study should end, or None: the same failure five times, or most of the first ten."""
    last = [str(o.failed) if o.failed else "" for o in outcomes[-_SAME_IN_A_ROW:]]
    if len(last) == _SAME_IN_A_ROW and last[0] and len(set(last)) == 1:
        return f"the same failure {_SAME_IN_A_ROW} times in a row: {last[0]}"
    first = outcomes[:_FIRST]
    failures = [str(o.failed) for o in first if o.failed]
    if len(first) == len(outcomes) == _FIRST and len(failures) > _FIRST // 2:
        return f"{len(failures)} of the first {_FIRST} candidates failed, the last with: {failures[-1]}"
    return None
