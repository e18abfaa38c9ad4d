"""The finalists, measured again side by side, then judged on the test split, opened this once.

Side by side means in turns: one round of each finalist, each in a process of its own, then the next
round of each. Rounds of one process agree better with each other than with those of the next one
(docs/measurements.md, "Rounds and processes"), so an interval over them would be too narrow.

The order in which they will be judged is fixed by the measurement, before the test split is
opened; the first whose drop there is within the limit ships.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from petra_deploy.core import machine
from petra_deploy.core.errors import OutOfDisk
from petra_deploy.core.job import CompileCheck, Limits, Measure
from petra_deploy.core.outcome import Failed, Figure, Front, Goal, Measurement, Outcome
from petra_deploy.core.strategy import FULL, Fidelity, Step, Strategy
from petra_deploy.core.workload import SealedSplit
from petra_deploy.driver.evaluate import Case, evaluate, score_job, time_job
from petra_deploy.driver.search import choose
from petra_deploy.driver.session import Session

ROUNDS = 9  # of each finalist, where the time left allows
FEWEST = 7  # the interval over rounds needs four, a p99 of slow engines seven
SECONDS, _LONGEST = 1.2, 6.0  # that an engine runs in each
_PROCESS = 0.8  # seconds to start one and have it import the runtime
_COMPILES_FOR = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # TensorRT-RTX, ahead of time
_COMPILING = 120.0  # seconds that it may take
_CALLS = 82  # in each of the fewest rounds, the first of a run among them, are enough for a p99


def confirm(
    finalists: Sequence[Outcome],
    goal: Goal,
    case: Case,
    baseline: Outcome,
    sealed: SealedSplit | None,
    session: Session,
) -> Front:
    """The finalists with their final figures, in order; `best` is the one that ships, if any.

    Without `sealed` the finalists have been judged on it before, on a machine that had it.
    """
    if case.baseline is None:
        raise ValueError("finalists are confirmed against a baseline")
    limits = Limits(seconds=max(session.left(), 0.15 * session.seconds, 60.0))
    if case.place.predicted:
        measured = [_predicted(outcome, case, limits, session) for outcome in finalists]
    else:
        measured = over_half(_in_turns(list(finalists), case, baseline, limits, session))
    order = sorted(measured, key=lambda o: -choose.rank(o, goal, case.baseline.bytes if case.baseline else 1))
    if sealed is None:
        return chosen_of(order, goal, case.baseline.bytes)
    reference = session.run(score_job(case.baseline, case, sealed.split, "test", None, limits))
    if isinstance(reference, Failed):
        return Front(
            outcomes=tuple(order), why=f"the baseline could not be scored on the test split: {reference.reason}"
        )
    judged = []
    for outcome in order:
        if outcome.engine is None or not outcome.ok:
            judged.append(outcome)
            continue
        score = session.run(score_job(outcome.engine, case, sealed.split, "test", reference.value.outputs, limits))
        judged.append(
            replace(outcome, failed=score) if isinstance(score, Failed) else replace(outcome, test=score.value)
        )
    return chosen_of(judged, goal, case.baseline.bytes)


def round_seconds(baseline: Outcome, seconds: float | None = None) -> float:
    """What a round of one finalist is expected to take: the baseline for `seconds`, and something faster."""
    wanted = _wanted(baseline) if seconds is None else seconds
    return 0.7 * baseline.round_seconds + 1.5 * (wanted - 0.4) + _PROCESS


def _wanted(baseline: Outcome) -> float:
    """Seconds of an engine in a round: calls enough for a p99 in the fewest rounds, within reason."""
    hot = baseline.measurement.candidate[0].p50.value if baseline.measurement else None
    return min(max(SECONDS, _CALLS * (hot or 0.0) / 1e3), _LONGEST)


def _in_turns(
    finalists: list[Outcome], case: Case, baseline: Outcome, limits: Limits, session: Session
) -> list[Outcome]:
    """Each with the figures of all its rounds; one that fails in any round has failed."""
    affordable, count, seconds = 0.8 * session.left(), max(len(finalists), 1), _wanted(baseline)
    if FEWEST * count * round_seconds(baseline, seconds) > affordable:
        seconds = SECONDS  # of a slow engine these are too few for a p99, and its figure says so
    rounds = min(max(int(affordable / (count * round_seconds(baseline, seconds))), FEWEST), ROUNDS)
    so_far: list[Measurement | None] = [None] * len(finalists)
    for turn in range(rounds):
        for index, outcome in enumerate(finalists):
            if outcome.engine is None or case.baseline is None or outcome.failed:
                continue
            done = session.run(
                Measure(
                    engine=outcome.engine,
                    baseline=case.baseline,
                    target=case.place.target,
                    split=case.workload.selection,
                    batches=case.batches,
                    rounds=1,
                    seconds=seconds,
                    seed=case.seed + 1 + turn,
                    earlier=so_far[index],
                    limits=limits,
                )
            )
            if not isinstance(done, Failed):
                so_far[index] = done.value
            elif done.kind == "disk":
                raise OutOfDisk(done.reason, "free some space and run again with --resume")
            else:
                finalists[index] = replace(outcome, failed=done)
    measured = [
        replace(outcome, measurement=found, fidelity=Fidelity(rounds=rounds)) if found and outcome.ok else outcome
        for outcome, found in zip(finalists, so_far, strict=True)
    ]
    return shared_scatter(measured)


def shared_scatter(measured: Sequence[Outcome]) -> list[Outcome]:
    """No finalist's interval is narrower than what the rounds of all of them together say.

    A few rounds can agree by luck. How rounds scatter is the machine's doing, and the finalists were
    measured on it in turns, so their variances are pooled (the root mean square of the log half-widths).
    """
    ready = [o.measurement for o in measured if o.ok and o.measurement is not None]
    if len(ready) < 2:
        return list(measured)
    pooled = [_pooled(figures) for figures in zip(*(found.speedups for found in ready), strict=True)]
    return [
        replace(o, measurement=replace(o.measurement, speedups=_at_least(o.measurement.speedups, pooled)))
        if o.ok and o.measurement is not None
        else o
        for o in measured
    ]


def _pooled(figures: Sequence[Figure]) -> float:
    """The root mean square of the log half-widths; 0 where no figure has bounds."""
    halves = [math.log(f.high / f.low) / 2 for f in figures if f.low and f.high and math.isfinite(f.high)]
    return math.sqrt(sum(half * half for half in halves) / len(halves)) if halves else 0.0


def _at_least(figures: Sequence[Figure], halves: Sequence[float]) -> tuple[Figure, ...]:
    """The figures, each bounded by at least exp(half) to either side."""
    return tuple(
        replace(f, low=min(f.low, f.value * math.exp(-half)), high=max(f.high, f.value * math.exp(half)))
        if f.value is not None and f.low is not None and f.high is not None
        else f
        for f, half in zip(figures, halves, strict=True)
    )


def with_half(
    finalists: Sequence[Outcome], outcomes: Sequence[Outcome], case: Case, session: Session
) -> tuple[Outcome, ...]:
    """The finalists, and on a GPU the model as it came in FP16: what would be served there without us."""
    if case.place.target.device != "cuda" or "fp16" not in case.place.target.precisions:
        return tuple(finalists)
    if any(in_half(o.strategy) for o in finalists):
        return tuple(finalists)
    known = next((o for o in outcomes if o.ok and in_half(o.strategy)), None)
    if known is None:
        strategy = Strategy(steps=(Step(technique="half"),), seed=case.seed)
        known = evaluate(strategy, FULL, case, session.run, Limits(seconds=max(session.left(), 60.0)))
    if known.failed:
        session.say(f"there is no baseline in FP16 to compare with: {known.failed}", "warning")
        return tuple(finalists)
    return (*finalists, known)


def over_half(measured: Sequence[Outcome]) -> list[Outcome]:
    """Each with its speedup over the model as it came in FP16, where that is among them.

    Both speedups are over the one baseline in FP32, measured in turns, so their ratio is the one over FP16. Those of
    the search itself may have been measured at the first batch sizes only.
    """
    matched = next((o.measurement for o in measured if o.ok and in_half(o.strategy)), None)
    if matched is None:
        return list(measured)
    return [
        replace(
            o,
            measurement=replace(
                o.measurement,
                over_half=tuple(_ratio(a, b) for a, b in zip(o.measurement.speedups, matched.speedups, strict=False)),
            ),
        )
        if o.ok and o.measurement is not None
        else o
        for o in measured
    ]


def in_half(strategy: Strategy) -> bool:
    """Whether it does nothing but cast to FP16."""
    return [step.technique for step in strategy.steps] == ["half"] and not strategy.backend


def _ratio(over: Figure, under: Figure) -> Figure:
    """Of two ratios; their log half-widths add in quadrature."""
    value = over.known() / under.known()
    spread = math.exp(math.hypot(_pooled([over]), _pooled([under])))
    return replace(over, value=value, low=value / spread, high=value * spread)


def _predicted(outcome: Outcome, case: Case, limits: Limits, session: Session) -> Outcome:
    """At every batch size; the search asked for one."""
    if outcome.engine is None or outcome.failed:
        return outcome
    done = session.run(time_job(outcome.engine, case, 1, limits))
    if isinstance(done, Failed):
        return replace(outcome, failed=done)
    return _compiled(replace(outcome, measurement=done.value), case, session)


def _compiled(outcome: Outcome, case: Case, session: Session) -> Outcome:
    """With a note on whether TensorRT-RTX compiles it, where that is installed here and knows the device.

    What it refuses TensorRT may take, and the other way round: nothing is dropped for it.
    """
    target = case.place.target
    capability = target.compute_capability or ""
    known = target.device == "cuda" and capability in _COMPILES_FOR and machine.installed("tensorrt_rtx")
    if outcome.engine is None or not known:
        return outcome
    done = session.run(CompileCheck(engine=outcome.engine, capability=capability, limits=Limits(seconds=_COMPILING)))
    if isinstance(done, Failed):
        note = f"not compiled as a check for compute capability {capability}: {done.reason}"
    elif done.value.refused:
        note = (
            f"{done.value.compiler} does not compile it for compute capability {capability}, TensorRT may: "
            f"{'; '.join(done.value.refused)}"
        )
        session.say(f"{outcome.strategy.describe()}: {note}", "warning")
    else:
        note = (
            f"compiles for compute capability {capability} with {done.value.compiler}: "
            "a check of parser and compiler, not of TensorRT"
        )
    return replace(outcome, notes=(*outcome.notes, note))


def chosen_of(judged: Sequence[Outcome], goal: Goal, baseline_bytes: int, *, sure: bool = True) -> Front:
    """The first in the order that holds on the test split and is better than the baseline; `sure`: by its interval."""
    for index, outcome in enumerate(judged):
        if not outcome.ok or outcome.test is None or outcome.test.drop is None:
            continue
        faster = choose.better if sure else choose.gains
        if outcome.test.drop.known() <= goal.max_drop and faster(outcome, goal, baseline_bytes):
            return Front(outcomes=tuple(judged), best=index)
    return Front(outcomes=tuple(judged), why=_why(judged, goal, baseline_bytes))


def _why(judged: Sequence[Outcome], goal: Goal, baseline_bytes: int) -> str:
    tested = [o for o in judged if o.test is not None and o.test.drop is not None]
    if not tested:
        return "no candidate could be judged on the test split"
    gained = [o for o in tested if choose.better(o, goal, baseline_bytes)]
    nearest = min(gained or tested, key=choose.test_drop)
    drop = choose.test_drop(nearest)
    times = choose.gain(nearest, goal, baseline_bytes)
    if drop > goal.max_drop and gained:
        return (
            f"the nearest candidate ({nearest.strategy.describe()}) is {times:.2f}x, but drops {drop:.2f} points "
            f"on the test split, where {goal.max_drop:g} are allowed"
        )
    best = max(choose.gain(o, goal, baseline_bytes) for o in tested)
    sure = "nothing tried beats the model as it came for sure, so it cannot gain here by what was tried"
    return f"{sure}: the best reached {best:.2f}x"
