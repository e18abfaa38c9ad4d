"""One CUDA stream and what is allocated for it, by NVIDIA's `cuda-python`; a wrong answer is a Problem.

cuda = Cuda(index=0, extra="tensorrt")
memory, page = cuda.device(1024), cuda.pinned(1024)      # an address; numpy bytes that DMA can read
cuda.upload(memory, page); cuda.wait(); cuda.close()
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem

Bytes = NDArray[np.uint8]
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Cuda:
    """Everything is released by `close`, which may be called twice."""

    def __init__(self, index: int, extra: str) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise Problem("extra", f"cuda-python cannot be imported: {error}",
                          f'pip install "petra-deploy[{extra}]"') from None  # fmt: skip
        self._rt: Any = runtime
        self._device: dict[int, None] = {}
        self._pinned: dict[int, None] = {}
        self._graphs: list[Any] = []
        self._events: list[Any] = []
        self.stream: Any = None
        self._ask(runtime.cudaSetDevice(index))
        self.stream = self._ask(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))

    @property
    def handle(self) -> int:
        """The stream, as TensorRT takes it."""
        return int(self.stream)

    def device(self, size: int) -> int:
        address = int(self._ask(self._rt.cudaMalloc(max(size, 1))))
        self._device[address] = None
        return address

    def pinned(self, size: int) -> Bytes:
        """Page-locked memory of the host."""
        address = int(self._ask(self._rt.cudaHostAlloc(max(size, 1), self._rt.cudaHostAllocDefault)))
        self._pinned[address] = None
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))[:size]

    def free(self, address: int) -> None:
        self._device.pop(address)
        self._ask(self._rt.cudaFree(address))

    def unpin(self, page: Bytes) -> None:
        address = page.ctypes.data
        self._pinned.pop(address)
        self._ask(self._rt.cudaFreeHost(address))

    def upload(self, address: int, page: Bytes) -> None:
        way = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._ask(self._rt.cudaMemcpyAsync(address, page.ctypes.data, page.nbytes, way, self.stream))

    def download(self, page: Bytes, address: int) -> None:
        way = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._ask(self._rt.cudaMemcpyAsync(page.ctypes.data, address, page.nbytes, way, self.stream))

    def wait(self) -> None:
        self._ask(self._rt.cudaStreamSynchronize(self.stream))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` as a CUDA graph: what replays it."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._ask(self._rt.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        except Problem:  # a stream left capturing refuses everything else
            self._rt.cudaStreamEndCapture(self.stream)
            self._rt.cudaGetLastError()
            raise
        graph = self._ask(self._rt.cudaStreamEndCapture(self.stream))
        replayed = self._ask(self._rt.cudaGraphInstantiate(graph, 0))
        self._ask(self._rt.cudaGraphDestroy(graph))
        self._graphs.append(replayed)
        return lambda: self._ask(self._rt.cudaGraphLaunch(replayed, self.stream))

    def times(self, work: Callable[[], None], calls: int) -> list[float]:
        """Milliseconds between an event before and one after each call of `work` on the stream."""
        while len(self._events) < 2 * calls:
            self._events.append(self._ask(self._rt.cudaEventCreate()))
        pairs = [(self._events[2 * i], self._events[2 * i + 1]) for i in range(calls)]
        for before, after in pairs:
            self._ask(self._rt.cudaEventRecord(before, self.stream))
            work()
            self._ask(self._rt.cudaEventRecord(after, self.stream))
        self.wait()
        return [float(self._ask(self._rt.cudaEventElapsedTime(before, after))) for before, after in pairs]

    def close(self) -> None:
        if self.stream is None:
            return
        self.wait()
        for graph in self._graphs:
            self._rt.cudaGraphExecDestroy(graph)
        for event in self._events:
            self._rt.cudaEventDestroy(event)
        for address in self._device:
            self._rt.cudaFree(address)
        for address in self._pinned:
            self._rt.cudaFreeHost(address)
        self._rt.cudaStreamDestroy(self.stream)
        self.stream = None
        self._graphs, self._events, self._device, self._pinned = [], [], {}, {}

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        error, *values = answer
        if int(error) == 0:
            return values[0] if values else None
        self._rt.cudaGetLastError()  # told once
        raise Problem("memory" if int(error) == _OUT_OF_MEMORY else "crash", f"CUDA answers {error.name}")
