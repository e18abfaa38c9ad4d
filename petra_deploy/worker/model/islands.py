"""Float islands: where int8 ruins a model's answers, the blocks that do it most stay in float, and are named.

    found = relieve(trial, blocks, most=4, least_db=10.0)
    found.culprits            # [Culprit("stages.0.0", 3.1)]: it alone, in int8, leaves 3.1 dB at the outputs
    found.kept                # ("stages.0.0",)

Silent where it is not needed. Each block is measured alone: all the model in float but for it. Then the worst one, two,
four ... are left in float, until the outputs hold. So there are at most as many more quantizations as doublings fit.
Source: per-block SQNR as in Krishnamoorthi, arXiv 1806.08342; the search from the worst on is greedy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from petra_deploy.core.errors import Problem

A = TypeVar("A")


@dataclass(frozen=True)
class Culprit:
    block: str
    sqnr_db: float  # of the outputs when this block alone is int8


@dataclass(frozen=True)
class Attempts(Generic[A]):
    """`quantize` makes an artifact with these blocks in float; `judge` gives its SQNR in dB against the float model,
    `alone` that of the model with one block only in int8. The last two see the same rows."""

    quantize: Callable[[tuple[str, ...]], A]
    judge: Callable[[A], float]
    alone: Callable[[str], float]


@dataclass(frozen=True)
class Relieved(Generic[A]):
    artifact: A
    sqnr_db: float
    kept: tuple[str, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    before_db: float | None = None  # of int8 all over, where islands were made

    def facts(self) -> dict[str, object]:
        if self.before_db is None:
            return {"sqnr_db": self.sqnr_db}
        return {
            "sqnr_db": self.sqnr_db, "sqnr_db_without_islands": self.before_db, "islands": list(self.kept),
            "culprits": [{"block": c.block, "sqnr_db": c.sqnr_db} for c in self.culprits],
        }  # fmt: skip


def relieve(
    attempts: Attempts[A], blocks: Callable[[], Sequence[str]], *, most: int, least_db: float
) -> Relieved[A]:  # fmt: skip
    """The artifact with as few of `blocks` in float as hold `least_db`; at most `most`, and never all of them.

    Where even that does not hold, the best artifact that was made. Raises what `quantize` raises at first.
    """
    first = attempts.quantize(())
    db = attempts.judge(first)
    if db >= least_db or most == 0:
        return Relieved(first, db)
    names = blocks()
    ranked = sorted((Culprit(name, attempts.alone(name)) for name in names), key=lambda c: (c.sqnr_db, c.block))
    best: Relieved[A] = Relieved(first, db, (), tuple(ranked[:most]), db)
    for count in _doublings(min(most, len(names) - 1)):
        kept = tuple(culprit.block for culprit in ranked[:count])
        try:
            made = attempts.quantize(kept)
        except Problem:  # nothing is int8 any more
            break
        found = attempts.judge(made)
        if found > best.sqnr_db:
            best = Relieved(made, found, kept, tuple(ranked[: max(count, 3)]), db)
        if found >= least_db:
            break
    return best


def _doublings(most: int) -> list[int]:
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return [*counts, most] if most > counts[-1] else counts[: 1 if most > 0 else 0]
