"""How many threads a training on the CPU runs with: chosen by the time its own first steps take.

    with chosen("cpu") as threads:
        for batch in batches:
            with threads.step():
                ...

A small network is done before the threads have found each other: on two cores a pruned ResNet
trains twice as fast on one of them, the whole one 1.6 times faster on both. Which it is depends
on the layers and on what else runs on the machine, so it is timed, and timed again now and then.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator

import torch

_TRIED = 3  # steps with each number of threads; the first is not counted
_AGAIN = 200  # steps until the numbers are compared again


class Threads:
    def __init__(self, choices: tuple[int, ...]) -> None:
        self.choices = choices
        self._waiting: list[int] = []  # of the steps to be tried
        self._seconds: dict[int, list[float]] = {}
        self._steps = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One training step, timed where numbers are being compared."""
        if len(self.choices) < 2:
            yield
            return
        if self._steps % _AGAIN == 0:
            self._waiting = [number for number in self.choices for _ in range(_TRIED)]
            self._seconds = {number: [] for number in self.choices}
        self._steps += 1
        if not self._waiting:
            yield
            return
        number = self._waiting.pop(0)
        torch.set_num_threads(number)
        start = time.perf_counter()
        yield
        self._seconds[number].append(time.perf_counter() - start)
        if not self._waiting:
            torch.set_num_threads(min(self.choices, key=lambda n: statistics.median(self._seconds[n][1:])))


@contextlib.contextmanager
def chosen(device: str) -> Iterator[Threads]:
    """All of torch's threads, about their square root, or one; as before on leaving."""
    before = torch.get_num_threads()
    most = before if device == "cpu" else 1
    try:
        yield Threads(tuple(sorted({most, math.isqrt(most), 1}, reverse=True)))
    finally:
        torch.set_num_threads(before)
