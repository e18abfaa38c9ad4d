"""The loop, driven by engines that only sleep or spin, so that the truth is known."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.worker.measure import loop

FEEDS = {1: [{"x": np.zeros(1)}], 4: [{"x": np.zeros(4)}]}
QUIET: Callable[[str], None] = lambda line: None  # noqa: E731


class Spinner:
    """An engine whose call spins for `microseconds`; `calls` gathers (side, batch) of each call."""

    def __init__(self, side: str, microseconds: float, calls: list[tuple[str, int]], stop: float = 0.0) -> None:
        self.side, self.seconds, self.calls, self.stop = side, microseconds / 1e6, calls, stop
        self.closed = 0

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        self.calls.append((self.side, len(feeds["x"])))
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        if self.stop and len(self.calls) == 300:
            time.sleep(self.stop)
        return []

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def openers(
    candidate: float, baseline: float
) -> tuple[dict[str, Callable[[int], Spinner]], list[tuple[str, int]], list[Spinner]]:
    calls: list[tuple[str, int]] = []
    opened: list[Spinner] = []

    def opener(side: str, microseconds: float) -> Callable[[int], Spinner]:
        def make(seed: int) -> Spinner:
            opened.append(Spinner(side, microseconds, calls))
            return opened[-1]

        return make

    return {"candidate": opener("candidate", candidate), "baseline": opener("baseline", baseline)}, calls, opened


def test_calls_come_in_runs_never_one_by_one_and_their_first_is_kept_apart() -> None:
    sides, calls, _ = openers(50, 200)
    (one,) = loop.measure(sides, FEEDS, rounds=1, seed=0, log=QUIET)
    for batch in (1, 4):
        order = one["batches"][str(batch)]["order"]
        sequence = [side for side, size in calls if size == batch]
        switches = sum(a != b for a, b in itertools.pairwise(sequence))
        assert switches <= len(order) + 2  # warm-up, then the runs
        for side in loop.SIDES:
            times = one["batches"][str(batch)][side]
            assert len(times["first_ns"]) == order.count(side)
            assert len(times["hot_ns"]) == len(times["cpu_ns"]) >= loop.RUN_CALLS * order.count(side)
    assert order.count("candidate") == order.count("baseline")


def test_every_round_opens_a_fresh_pair_and_closes_it() -> None:
    sides, _, opened = openers(20, 20)
    rounds = loop.measure(sides, {1: FEEDS[1]}, rounds=3, seed=1, log=QUIET)
    assert len(opened) == 6
    assert all(engine.closed for engine in opened)
    assert len({one["seed"] for one in rounds}) == 3


def test_the_order_is_random_and_the_same_seed_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RUN_SECONDS", 1e-3)

    def orders(seed: int) -> list[Any]:
        sides, _, _ = openers(20, 20)
        rounds = loop.measure(sides, {1: FEEDS[1]}, rounds=2, seed=seed, log=QUIET)
        return [(one["opened"], one["batches"]["1"]["order"][:6]) for one in rounds]

    assert orders(3) == orders(3)
    assert orders(3) != orders(4)


@pytest.mark.parametrize(
    ("seconds", "runs", "calls"),
    [
        ({"candidate": 100e-6, "baseline": 100e-6}, 12, {"candidate": 401, "baseline": 401}),
        ({"candidate": 1e-3, "baseline": 1e-3}, 12, {"candidate": 41, "baseline": 41}),
        ({"candidate": 300e-6, "baseline": 15e-3}, 8, {"candidate": 135, "baseline": 10}),
        ({"candidate": 1.0, "baseline": 1.0}, 3, {"candidate": 2, "baseline": 2}),
    ],
)
def test_slow_engines_get_fewer_calls_so_that_a_round_ends(
    seconds: dict[str, float], runs: int, calls: dict[str, int]
) -> None:
    assert loop.plan(seconds, loop.Effort(1.2, fewest_runs=3)) == (runs, calls)


def test_a_round_in_which_the_process_was_stopped_is_discarded_and_repeated() -> None:
    calls: list[tuple[str, int]] = []
    stops = [1.3, 0.0]
    lines: list[str] = []

    def opener(side: str) -> Callable[[int], Spinner]:
        return lambda seed: Spinner(side, 1000, calls, stops[0] if len(calls) < 300 else 0.0)

    rounds = loop.measure(
        {side: opener(side) for side in loop.SIDES}, {1: FEEDS[1]}, rounds=1, seed=0, log=lines.append
    )
    assert len(rounds) == 1
    assert "discarded and repeated" in lines[0]
    assert max(rounds[0]["batches"]["1"]["candidate"]["hot_ns"]) < 1e9


def test_stops_that_go_on_are_a_problem_not_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPEATS", 1)
    monkeypatch.setattr(loop, "WARM_SECONDS", 1e-3)
    calls: list[tuple[str, int]] = []

    class Stopping(Spinner):
        def run(self, feeds: Mapping[str, Any]) -> list[Any]:
            calls.append(("x", 1))
            if len(calls) % 40 == 0:
                time.sleep(1.1)
            return super().run(feeds)

    sides = {side: (lambda seed, side=side: Stopping(side, 1000, [])) for side in loop.SIDES}
    with pytest.raises(Problem, match="interrupted") as caught:
        loop.measure(sides, {1: FEEDS[1]}, rounds=1, seed=0, log=QUIET)
    assert caught.value.kind == "lost"


STOPPED = """
import sys, time
import numpy as np
from tests.unit.worker.measure.test_loop import FEEDS, openers
from petra_deploy.worker.measure import loop
sides, calls, _ = openers(1000, 1000)
print("started", flush=True)
rounds = loop.measure(sides, {1: FEEDS[1]}, rounds=2, seed=0, log=lambda line: print(line, flush=True))
print("worst", max(max(one["batches"]["1"][s]["hot_ns"]) for one in rounds for s in loop.SIDES) < 1e9)
"""


def test_a_process_stopped_by_a_signal_never_records_the_pause_as_slow() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(child.pid, signal.SIGCONT)
        told = child.stdout.read()
    assert "worst True" in told


def test_a_first_call_that_prepares_does_not_pass_for_the_speed() -> None:
    """On a GPU the first call at a shape chooses kernels and captures graphs, for longer than a whole round."""

    class Preparing:
        def __init__(self) -> None:
            self.calls = 0

        def run(self, feeds: object) -> list[np.ndarray]:
            self.calls += 1
            time.sleep(0.4 if self.calls == 1 else 0.001)
            return []

    engine = Preparing()
    seconds = loop._warm_up(engine, [{}], loop.SHORT)  # type: ignore[arg-type]
    assert engine.calls > loop.WARM_CALLS
    assert seconds < 0.4 / 2  # the first call is no part of it
