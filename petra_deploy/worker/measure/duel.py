"""Two engines in paired rounds until every gate on latency is decided.

    rounds = duel({"baseline": open_base, "candidate": open_new}, feeds, gates, most_rounds=20, seed=1, log=print)

After each round the anytime-valid test is asked (core/verdict.py), so looking early costs nothing; a batch size whose
gate is decided is measured no more.
"""

from collections.abc import Callable, Mapping, Sequence

from petra_deploy.core.comparison import Gate
from petra_deploy.core.verdict import undecided
from petra_deploy.worker.measure.loop import Feeds, Openers, Record, Sitting

RUN_SECONDS = 5e-3  # and ten calls: the engines change places often, so that what else runs here befalls both alike
FEWEST = 6  # rounds of a batch size: four may settle a gate, but their interval says little


def duel(
    openers: Openers, feeds: Mapping[int, Sequence[Feeds]], gates: Sequence[Gate], *,
    most_rounds: int, seed: int, seconds: float = 0.25, threads: int = 1, log: Callable[[str], None],
) -> list[Record]:  # fmt: skip
    """The rounds, as they were. `feeds` are by the batch sizes of `gates`. Raises Problem as `Sitting.round` does."""
    sitting = Sitting(openers, seed=seed, seconds=seconds, threads=threads, run_seconds=RUN_SECONDS, log=log)
    done: list[Record] = []
    while len(done) < most_rounds and (left := gates if len(done) < FEWEST else undecided(gates, done)):
        done.append(sitting.round({gate.batch: feeds[gate.batch] for gate in left}))
    return done
