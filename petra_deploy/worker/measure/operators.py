"""From rounds of a profiled engine to its operators: each with its layers, its time and its share.

    profile = profile_of("onnxruntime", batch, rounds, layers)
    sum(operator.share for operator in profile.operators)       # 1

An operator that ran in one round and not in another (a branch of an If) took no time there. A profiler slows what
it watches: of a network of a hundred small operators ONNX Runtime's takes fourfold the time, two microseconds an
operator.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from petra_deploy.core import stats
from petra_deploy.core.operators import Operator, OpsProfile, Ran, RanAll
from petra_deploy.worker.artifact.attribution import Layers

_FEWEST, _MOST = 5, 200  # calls a round
_SLOW_US, _FEWEST_SLOW = 0.3e6, 2
_OWN_SHARE = 0.9  # of the clock's time, of an engine on a quiet core


@dataclass(frozen=True)
class Round:
    whole_us: float  # a call without the profiler: the median
    cpu_us: float  # the processor time of such a call; infinite where several threads, or a GPU, do the work
    ran: RanAll

    @property
    def own_us(self) -> float:
        """What a call takes at most by itself: other programs on the core do not count."""
        return min(self.whole_us, self.cpu_us)


def calls_for(us: float, seconds: float) -> int:
    """As many calls of `us` microseconds as `seconds` hold, within bounds; fewer where each is slow."""
    fewest = _FEWEST if us < _SLOW_US else _FEWEST_SLOW
    return max(fewest, min(_MOST, math.ceil(seconds * 1e6 / max(us, 1.0))))


def profile_of(runtime: str, batch: int, rounds: Sequence[Round], layers: Layers) -> OpsProfile:
    """Operators come in the order of execution of the first round."""
    each = _alike([found.ran.operators for found in rounds])
    first = {name: one for found in reversed(each) for name, one in found.items()}
    ordered = [*each[0], *(name for name in first if name not in each[0])]
    less, added = [], []
    for found, ran in zip(rounds, each, strict=True):
        times, taken = without_profiler([one.us for one in ran.values()], found.own_us)
        less.append(dict(zip(ran, times, strict=True)))
        added.append(taken)
    us = {name: tuple(found.get(name, 0.0) for found in less) for name in ordered}
    total = sum(map(sum, us.values())) or 1.0
    left = [found.own_us - sum(times.values()) for found, times in zip(rounds, less, strict=True)]
    places = layers.attribute([first[name] for name in ordered])
    operators = tuple(
        Operator(
            name=name, operator=first[name].operator, precision=first[name].precision, layers=where, how=how,
            us=us[name], time=stats.mean(us[name], "us"), share=sum(us[name]) / total,
        )
        for name, (where, how) in zip(ordered, places, strict=True)
    )  # fmt: skip
    whole, profiled = [found.whole_us for found in rounds], [found.ran.call_us for found in rounds]
    return OpsProfile(
        runtime=runtime, batch=batch, operators=operators, layers=layers.names, quantized=layers.quantized,
        whole_us=tuple(whole), profiled_us=tuple(profiled), whole=stats.mean(whole, "us"),
        profiled=stats.mean(profiled, "us"), added=stats.mean(added, "us"), unattributed=stats.mean(left, "us"),
    )  # fmt: skip


def without_profiler(us: Sequence[float], whole_us: float) -> tuple[list[float], float]:
    """The times, each less the same, so that their sum comes down to `whole_us`; and that same.

    What a profiler adds to an operator (two looks at the clock, a line of its log) does not depend on the operator,
    so it is never more than the shortest of them took.
    """
    if not us:
        return [], 0.0
    added = min(min(us), max(0.0, (sum(us) - whole_us) / len(us)))
    return [one - added for one in us], added


def contended(rounds: Sequence[Round]) -> str:
    """A sentence where other programs took the core; empty where not."""
    share = statistics.median(found.cpu_us / found.whole_us for found in rounds)
    if share > _OWN_SHARE:
        return ""
    return (f"the engine had its core for {share:.0%} of the time only, other programs had the rest: times of single "
            "operators are as noisy; measure again on a quiet machine")  # fmt: skip


def _alike(rounds: Sequence[Sequence[Ran]]) -> list[dict[str, Ran]]:
    """Operators by the names of the first round: OpenVINO makes some up anew each time that it opens a file.

    Where the rounds did not run the same operators in the same order they go by their own names.
    """
    kinds = [[(one.operator, one.precision) for one in ran] for ran in rounds]
    same = all(kind == kinds[0] for kind in kinds)
    return [dict(zip(_unique(rounds[0] if same else ran), ran, strict=True)) for ran in rounds]


def _unique(ran: Sequence[Ran]) -> list[str]:
    """A runtime may give two operators one name: the later ones have a number."""
    seen: dict[str, int] = {}
    names = []
    for one in ran:
        seen[one.name] = seen.get(one.name, 0) + 1
        names.append(one.name if seen[one.name] == 1 else f"{one.name}#{seen[one.name]}")
    return names
