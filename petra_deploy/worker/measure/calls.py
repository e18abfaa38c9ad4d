"""Time calls one by one: what a profiled engine and one without the profiler are both timed with.

times = timed_us(runner.run, feeds, calls=100)          # of each call that counts, after WARM that do not
wall, cpu = timed_both_us(runner.run, feeds, calls=100)     # the processor time of this thread beside
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
WARM = 3  # calls before any is counted


def timed_us(run: Callable[[Feeds], object], feeds: Sequence[Feeds], calls: int) -> list[float]:
    """Microseconds of each of `calls` calls, each with the next of `feeds`, in turn."""
    return timed_both_us(run, feeds, calls)[0]


def timed_both_us(
    run: Callable[[Feeds], object], feeds: Sequence[Feeds], calls: int
) -> tuple[list[float], list[float]]:
    """By the clock, and the processor time of this thread."""
    clock, cpu, walls, used = time.perf_counter_ns, time.thread_time_ns, [], []
    for number in range(WARM + calls):
        rows = feeds[number % len(feeds)]
        before = cpu()
        start = clock()
        run(rows)
        walls.append((clock() - start) / 1e3)
        used.append((cpu() - before) / 1e3)
    return walls[WARM:], used[WARM:]
