"""When failures say that going on is pointless."""

from collections.abc import Sequence

from petra_deploy.core.outcome import Outcome

_SAME_IN_A_ROW = 5
_FIRST = 10


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
