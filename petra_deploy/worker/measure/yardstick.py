"""A fixed piece of arithmetic, timed in turns with an engine: what this machine's speed is just now.

    with Yardstick() as yardstick:
        yardstick.run({})               # about half a millisecond

Profiles of one machine that were taken at different hours are compared through it, since a shared machine is faster
at one hour than at another. It is elementwise numpy on arrays that fit into any second-level cache, then a copy that
does not: no BLAS, no runtime, one thread. It moves with the processor's frequency and with what others do to caches
and memory; of instructions that only an engine uses it knows nothing. Its work is never changed without a new NAME.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NAME = "yardstick/1"
_SMALL = 16_384  # float32: three arrays are 192 KiB
_LARGE = 4 << 20  # bytes that are copied
_TIMES = 96


class Yardstick:
    """A Runner that takes no notice of what it is fed, and always does the same."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._padding = np.ones(
            int(generator.integers(1, 300_000))
        )  # moves where the rest lies, as engines' openers do
        self._a = np.linspace(0.5, 1.0, _SMALL, dtype=np.float32)
        self._b = np.linspace(1.0, 2.0, _SMALL, dtype=np.float32)
        self._c = np.empty_like(self._a)
        self._source = np.arange(_LARGE // 8, dtype=np.int64)
        self._copy = np.empty_like(self._source)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for _ in range(_TIMES):
            np.multiply(self._a, self._b, out=self._c)
            np.add(self._c, self._b, out=self._c)
        np.copyto(self._copy, self._source)
        return [self._c]

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
