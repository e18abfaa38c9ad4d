"""The engine lottery: TensorRT builds of one graph differ, so the winner is built several times.

    plans = [compile(...), compile(...), compile(...)]
    won = play(runners, feeds, reference)       # Won(index=2, why="...", facts=[{"ms": ..., ...}, ...])

Each build must agree with ONNX Runtime on the processor, and with the first build; of those that do, the
one that is faster than the first in all rounds but one is kept, the fastest if there are several. Rounds
take every build in turn. `choose` decides and is pure.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import TensorSpec

Array = NDArray[Any]
ROUNDS, CALLS = 9, 30
LIMIT = 0.1  # of the largest output: int8 sums round apart by less, a wrong kernel by far more


@dataclass(frozen=True)
class Try:
    """One build: its median of each round in milliseconds, and how far its outputs are from the references.

    A difference is the largest error of any output, relative to the largest magnitude of that output.
    """

    ms: tuple[float, ...]
    from_first: float
    from_processor: float | None = None  # None: ONNX Runtime does not run the graph


@dataclass(frozen=True)
class Won:
    index: int
    why: str


def choose(tries: Sequence[Try], limit: float = LIMIT) -> Won:
    """The build to ship. Raises Problem("mismatch") where none agrees with its references."""
    agree = [i for i, one in enumerate(tries) if _worst(one) <= limit]
    if not agree:
        least = min(_worst(one) for one in tries)
        raise Problem("mismatch", f"none of {len(tries)} builds computes what the graph says: the nearest is "
                      f"{least:.3g} of the largest output away, the limit is {limit:g}")  # fmt: skip
    first = agree[0]
    best, gain = first, 1.0
    for index in agree[1:]:
        ratios = [before / after for before, after in zip(tries[first].ms, tries[index].ms, strict=True)]
        steady = sum(ratio > 1 for ratio in ratios) >= max(len(ratios) - 1, 1)
        if steady and statistics.median(ratios) > gain:
            best, gain = index, statistics.median(ratios)
    dropped = len(tries) - len(agree)
    out = f"; {dropped} of {len(tries)} computed something else and are out" if dropped else ""
    if best == first:
        return Won(best, f"none of {len(agree)} builds was steadily faster than the first that agrees{out}")
    return Won(best, f"{gain:.3f} times as fast as the first that agrees, the best of {len(agree)}{out}")


def play(
    runners: Sequence[Any], feeds: Mapping[str, Array], processor: Sequence[Array] | None
) -> tuple[Won, list[dict[str, object]]]:
    """Time every open build in turns and choose; the second part is what each one was, for the record."""
    outputs = [runner.run(feeds) for runner in runners]
    rounds: list[list[float]] = [[] for _ in runners]
    for turn in range(ROUNDS):
        for step in range(len(runners)):
            index = (turn + step) % len(runners)
            rounds[index].append(statistics.median(runners[index].device_ms(feeds, CALLS)))
    tries = [
        Try(tuple(ms), difference(outputs[0], found), None if processor is None else difference(processor, found))
        for ms, found in zip(rounds, outputs, strict=True)
    ]
    won = choose(tries)
    return won, [_told(one, kept=index == won.index) for index, one in enumerate(tries)]


def difference(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest error of any output over the largest magnitude of that output; infinite where one is not finite."""
    worst = 0.0
    for wanted, got in zip(expected, found, strict=True):
        a, b = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
        finite = np.isfinite(a)
        if a.shape != b.shape or not np.array_equal(finite, np.isfinite(b)):
            return float("inf")
        scale = max(float(np.abs(a[finite]).max(initial=0.0)), 1e-6)
        worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale)
    return worst


def by_processor(model: Path, feeds: Mapping[str, Array]) -> list[Array] | None:
    """What ONNX Runtime says of the same file on the processor; None where it does not run it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # Q/DQ pairs as they are written
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        outputs: list[Array] = session.run(None, dict(feeds))
    except Exception:  # ONNX Runtime's errors share no base of their own; some graphs only a GPU runs
        return None
    return outputs


def example(spec: TensorSpec, sizes: Mapping[str, int], seed: int = 0) -> Array:
    """Seeded numbers for an input: normal ones for floats; 0 and 1 for whole numbers, valid as an index."""
    generator = np.random.default_rng(seed)
    shape = tuple(sizes.get(size, 1) if isinstance(size, str) else size for size in spec.shape)
    if np.dtype(spec.dtype).kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    values = generator.integers(0, 2, shape)
    if len(shape) > 1:
        values[:, 0] = 1  # a mask of zeros only makes attention NaN
    return values.astype(spec.dtype)


def _worst(one: Try) -> float:
    return max(one.from_first, one.from_processor or 0.0)


def _told(one: Try, kept: bool) -> dict[str, object]:
    """Infinite differences as text: JSON has no number for them."""
    apart = {"from_first": one.from_first, "from_processor": one.from_processor}
    told: dict[str, object] = {
        name: value if value is None or np.isfinite(value) else "not finite" for name, value in apart.items()
    }
    return {"ms": round(statistics.median(one.ms), 6), "kept": kept, **told}
