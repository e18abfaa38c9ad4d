"""An open TensorRT engine: arrays in, arrays out, by named tensors on one CUDA stream.

    with Runner(vendor, plan, cuda_graph="auto", jit=file) as runner:
        logits, = runner.run({"image": images})
        runner.device_ms({"image": images}, calls=50)       # what the device alone took, call by call

Each shape of inputs has its own execution context, buffers and, after one call to warm up, its own CUDA
graph: a captured graph holds for the shapes and the context that it was captured with. A few shapes are
kept, the longest unused goes first. Copies stay outside of the graph, so that events around it time the
engine and nothing else. Source: TensorRT's documentation, "CUDA Graphs" and "Performing Inference".
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.outcome import FailureKind
from petra_deploy.worker.backends._cuda import Bytes, Cuda
from petra_deploy.worker.backends._trt_cache import Plan
from petra_deploy.worker.backends._trt_vendor import Vendor, sentence

Array = NDArray[Any]
Graphs = Literal["auto", "on", "off"]  # auto: a CUDA graph where the engine can be captured
_LOG = logging.getLogger("petra_deploy")
_SHAPES = 4  # kept at once
_PAGE = 4096


@dataclass
class _Tensor:
    """A door of the engine at one shape: its memory on both sides, and the array that the host sees."""

    address: int
    page: Bytes
    array: Array


@dataclass
class _Shaped:
    """The engine at one shape of its inputs."""

    context: Any
    tensors: dict[str, _Tensor] = field(default_factory=dict)
    calls: int = 0
    replay: Callable[[], None] | None = None  # of the captured CUDA graph


class Runner:
    """Outputs come in the graph's order. Closing twice is harmless."""

    def __init__(self, vendor: Vendor, plan: Plan, *, cuda_graph: Graphs, jit: Path, index: int = 0,
                 host_code: bool = False, seed: int = 0) -> None:  # fmt: skip
        """Raises Problem where no device is here, or the plan is not accepted. `seed` moves its memory.

        `jit` is the file for kernels that are compiled on opening; `host_code` admits plans of other versions.
        """
        self._vendor = vendor
        vendor.devices()
        trt, self._log = vendor.load()
        self._log.drain()
        self._nptype: Any = trt.nptype
        self._shaped: dict[tuple[tuple[int, ...], ...], _Shaped] = {}
        self._must = cuda_graph == "on"
        self.captures = cuda_graph != "off" and not vendor.graphs
        self.inputs, self.outputs = plan.provenance.inputs, plan.provenance.outputs
        self._cuda: Cuda | None = Cuda(index, vendor.extra)
        try:
            self._cuda.device(int(np.random.default_rng(seed).integers(1, 256)) * _PAGE)  # moves all that follow
            self._runtime = trt.Runtime(self._log)
            if host_code:  # a plan for other versions brings its own runtime
                self._runtime.engine_host_code_allowed = True
            self._engine: Any = self._runtime.deserialize_cuda_engine(plan.data)
            if self._engine is None:
                raise self._problem("the plan cannot be opened")
            self._contexts = vendor.contexts(trt, self._engine, cuda_graph != "off", jit)
        except BaseException:
            self._cuda.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Raises Problem "unsupported" where the engine is not made for these feeds, "crash" where it fails on them."""
        cuda, shaped = self._ready(feeds)
        for name in self.inputs:
            cuda.upload(shaped.tensors[name].address, shaped.tensors[name].page)
        self._enqueue(cuda, shaped)
        for name in self.outputs:
            cuda.download(shaped.tensors[name].page, shaped.tensors[name].address)
        cuda.wait()
        return [shaped.tensors[name].array.copy() for name in self.outputs]

    def device_ms(self, feeds: Mapping[str, Array], calls: int) -> list[float]:
        """Milliseconds of each of `calls` calls on the device, copies left out, after one that warms up."""
        self.run(feeds)
        cuda, shaped = self._ready(feeds)
        self._enqueue(cuda, shaped)
        return cuda.times(lambda: self._enqueue(cuda, shaped), calls)

    def profile(self, feeds: Mapping[str, Array], calls: int, watch: Any) -> list[float]:
        """Let `watch`, an IProfiler, hear of every layer of each of `calls` calls; returns what each took, in ms.

        Raises Problem "unsupported" of a runner with CUDA graphs: a replay reports no layer by itself.
        """
        if self.captures or (self._vendor.graphs and self._must):
            raise Problem("unsupported", "layers cannot be timed in a CUDA graph", "open it with cuda_graph: off")
        self.run(feeds)
        cuda, shaped = self._ready(feeds)
        shaped.context.profiler = watch  # enqueue_emits_profile is on: each call reports before it returns
        for name in self.inputs:
            cuda.upload(shaped.tensors[name].address, shaped.tensors[name].page)
        return cuda.times(lambda: self._execute(cuda, shaped.context), calls)

    def described(self) -> str:
        """The engine's layers as JSON, as its inspector tells them."""
        trt, _ = self._vendor.load()
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        if self._cuda is None:
            return
        cuda, self._cuda = self._cuda, None
        cuda.wait()
        self._contexts.close()
        self._shaped.clear()
        del self._contexts, self._engine, self._runtime
        cuda.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, feeds: Mapping[str, Array]) -> tuple[Cuda, _Shaped]:
        """The engine at the feeds' shapes, with the feeds in its pinned memory."""
        if self._cuda is None:
            raise Problem("unsupported", "the engine cannot run: it was closed")
        if missing := [name for name in self.inputs if name not in feeds]:
            raise Problem("unsupported", f"the engine cannot run: the input {missing[0]!r} was not given")
        key = tuple(feeds[name].shape for name in self.inputs)
        shaped = self._shaped.pop(key, None) or self._shape(self._cuda, dict(zip(self.inputs, key, strict=True)))
        self._shaped[key] = shaped  # the last one used
        for name in self.inputs:
            array = shaped.tensors[name].array
            if array.dtype != feeds[name].dtype:
                raise Problem(
                    "unsupported", f"the engine cannot run: input {name!r} is {feeds[name].dtype}, not {array.dtype}"
                )
            array[...] = feeds[name]
        return self._cuda, shaped

    def _shape(self, cuda: Cuda, shapes: Mapping[str, tuple[int, ...]]) -> _Shaped:
        """A context at these shapes, and memory for every tensor."""
        while len(self._shaped) >= _SHAPES:
            self._release(cuda, self._shaped.pop(next(iter(self._shaped))))
        context = self._contexts.make()
        if context is None:
            raise self._problem("no execution context can be made")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._problem(
                    f"input {name!r} of shape {shape} is outside of what it was built for", "unsupported"
                )
        shaped = _Shaped(context)
        try:
            for name in (*self.inputs, *self.outputs):
                shaped.tensors[name] = self._tensor(cuda, context, name)
        except BaseException:
            self._release(cuda, shaped)
            raise
        return shaped

    def _tensor(self, cuda: Cuda, context: Any, name: str) -> _Tensor:
        shape = tuple(context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise Problem("unsupported", f"the shape of output {name!r} depends on the data, which is not served here")
        try:
            dtype = np.dtype(self._nptype(self._engine.get_tensor_dtype(name)))
        except TypeError:
            raise Problem("unsupported", f"numpy has no type for {name!r}") from None
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        page = cuda.pinned(size)
        tensor = _Tensor(cuda.device(size), page, page.view(dtype).reshape(shape))
        context.set_tensor_address(name, tensor.address)
        return tensor

    def _enqueue(self, cuda: Cuda, shaped: _Shaped) -> None:
        """Start one call on the stream. The second at a shape is captured, where that is wanted."""
        if self.captures and shaped.calls == 1:
            shaped.replay = self._captured(cuda, shaped)
        shaped.calls += 1
        if shaped.replay is not None:
            shaped.replay()
        else:
            self._execute(cuda, shaped.context)

    def _captured(self, cuda: Cuda, shaped: _Shaped) -> Callable[[], None] | None:
        """The call as a CUDA graph; None where it has none (loops, for one) and none was insisted on."""
        try:
            return cuda.capture(lambda: self._execute(cuda, shaped.context))
        except Problem as problem:
            if self._must:
                raise Problem("unsupported", f"the engine has no CUDA graph: {problem.reason}",
                              "use the setting cuda_graph: off") from problem  # fmt: skip
            _LOG.info("served without a CUDA graph: %s", problem.reason)
            self.captures = False
            return None

    def _execute(self, cuda: Cuda, context: Any) -> None:
        if not context.execute_async_v3(cuda.handle):
            raise self._problem("it stopped")

    def _release(self, cuda: Cuda, shaped: _Shaped) -> None:
        cuda.wait()
        for tensor in shaped.tensors.values():
            cuda.free(tensor.address)
            cuda.unpin(tensor.page)

    def _problem(self, what: str, kind: FailureKind = "crash") -> Problem:
        said = [sentence(message, self._vendor).partition(": ")[2] for message in self._log.drain()]
        return Problem(kind, f"the engine cannot run: {what}" + "".join(f"; {text}" for text in said[:2]))
