"""Whether two thin layers run faster than one wide one on this processor: both are run as small ONNX graphs.

    wide = Wide("linear", inputs=(64, 384), weight=(1536, 384))      # one row of the model's input: 64 tokens
    worth(wide, "channels")            # Worth(rank=192, speedup=1.31), or rank 0 and why not

A layer and its factors at several ranks are run in turns by ONNX Runtime on one thread, in FP32; the speedup is the
median over rounds of the ratio of their times. The largest rank whose speedup is at least `MARGIN` is the answer.
"""

import functools
import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from petra_deploy.worker.measure.probes import Net, Probe

Cut = Literal["channels", "space"]
MARGIN = 1.1
SHARES = (0.75, 0.5, 0.25, 0.125)  # of the rank at which the factors have as many weights as the layer
LEAST_MACS = 1 << 15  # fewer take less time than it takes to start a second operator
MOST_MACS = 1 << 28  # more take longer and tell no more: a part of the map, or of the tokens, is run
_RUN_SECONDS, _ROUNDS, _MOST_SECONDS = 5e-4, 7, 0.3


@dataclass(frozen=True)
class Wide:
    """A layer as it is called: `inputs` is the shape of what it gets for one row of the model's input."""

    kind: Literal["linear", "conv"]
    inputs: tuple[int, ...]
    weight: tuple[int, ...]  # as torch keeps it: (outputs, inputs, window...)
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()  # at each end
    dilations: tuple[int, ...] = ()

    def even(self, cut: Cut) -> int:
        """The largest rank at which the factors have fewer weights and multiply-accumulates."""
        outputs, wide = self.weight[0], math.prod(self.weight[1:])
        if cut == "channels":
            return (outputs * wide - 1) // (outputs + wide)
        channels, high, across = self.weight[1:]
        return (outputs * wide - 1) // (channels * high * self.strides[1] + outputs * across)

    @property
    def macs(self) -> int:
        positions = math.prod(self.inputs[:-1])
        if self.kind == "conv":
            positions = self.inputs[0] * math.prod(
                -(-n // s) for n, s in zip(self.inputs[2:], self.strides, strict=True)
            )
        return positions * math.prod(self.weight)


@dataclass(frozen=True)
class Worth:
    rank: int  # the largest that pays; 0: none
    speedup: float  # measured: of that rank, or the best there was
    why: str = ""


@functools.lru_cache(maxsize=512)
def worth(wide: Wide, cut: Cut) -> Worth:
    """Measured once a process for each shape; a layer too small to be worth it is not run at all."""
    even = wide.even(cut)
    ranks = sorted({_stepped(even * share) for share in SHARES} - {0}, reverse=True)
    if not ranks:
        return Worth(0, 0.0, "two factors of any rank have no fewer weights than it")
    if wide.macs < LEAST_MACS:
        return Worth(0, 0.0, f"its {wide.macs} multiply-accumulates take less time than to start a second operator")
    wide = part(wide)
    speedups = _timed(graph(wide, cut, 0), [graph(wide, cut, rank) for rank in ranks])
    for rank, speedup in zip(ranks, speedups, strict=True):
        if speedup >= MARGIN:
            return Worth(rank, speedup)
    best = max(speedups)
    return Worth(0, best, f"measured, its factors run at {best:.2f} times its speed at best")


def part(wide: Wide) -> Wide:
    """The layer called with so few tokens or positions of its map that it takes at most `MOST_MACS`, if it can."""
    sizes = list(wide.inputs)
    if wide.kind == "linear":
        least = dict.fromkeys(range(len(sizes) - 1), 1)
    else:
        least = {axis + 2: 4 * d * k for axis, (d, k) in enumerate(zip(wide.dilations, wide.weight[2:], strict=True))}
    while (small := replace(wide, inputs=tuple(sizes))).macs > MOST_MACS:
        axis = max(least, key=lambda a: sizes[a] / least[a])
        if sizes[axis] // 2 < least[axis]:
            break
        sizes[axis] //= 2
    return small


def _stepped(rank: float) -> int:
    """A multiple of 16, which kernels run fast at, where there is one."""
    return int(rank) // 16 * 16 or int(rank)


def graph(wide: Wide, cut: Cut, rank: int) -> Probe:
    """The layer with a bias, or its factors where `rank` is not 0."""
    net = Net(wide.inputs)
    outputs, *inside = wide.weight
    if wide.kind == "linear":
        for width, more in ((rank, False), (outputs, True)) if rank else ((outputs, True),):
            before = rank if rank and more else inside[0]
            if len(wide.inputs) == 2:
                bias = [net.weights(width)] if more else []
                net.node("Gemm", net.x, net.weights(width, before), *bias, transB=1)
            else:
                net.node("MatMul", net.x, net.weights(before, width))
                if more:
                    net.node("Add", net.x, net.weights(width))
    elif not rank:
        _conv(net, wide, tuple(wide.weight), True)
    elif cut == "channels":
        _conv(net, wide, (rank, *inside), False)
        net.node("Conv", net.x, net.weights(outputs, rank, *[1] * (len(inside) - 1)), net.weights(outputs))
    else:
        _conv(net, wide, (rank, inside[0], inside[1], 1), False, (1, 0))
        _conv(net, wide, (outputs, rank, 1, inside[2]), True, (0, 1))
    return net.probe(f"{wide} {cut} {rank}")


def _conv(net: Net, wide: Wide, weight: tuple[int, ...], bias: bool, along: tuple[int, ...] | None = None) -> None:
    """`along`: 1 for the dimensions that this factor moves in."""
    on = along or (1,) * len(wide.strides)
    around: dict[str, Any] = {
        "strides": [s if o else 1 for s, o in zip(wide.strides, on, strict=True)],
        "dilations": [d if o else 1 for d, o in zip(wide.dilations, on, strict=True)],
        "pads": [p * o for p, o in zip(wide.pads, on, strict=True)] * 2,
    }
    net.node("Conv", net.x, net.weights(*weight), *([net.weights(weight[0])] if bias else []), **around)


def _timed(whole: Probe, others: list[Probe]) -> list[float]:
    """How many times faster than `whole` each of the others is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(probe.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for probe in (whole, *others)
    ]
    feeds = whole.feeds
    for session in sessions:
        session.run(None, feeds)
    start = time.perf_counter()
    sessions[0].run(None, feeds)
    calls = max(1, round(_RUN_SECONDS / max(time.perf_counter() - start, 1e-6)))
    ratios: list[list[float]] = [[] for _ in others]
    end = time.monotonic() + _MOST_SECONDS
    while len(ratios[0]) < 3 or (len(ratios[0]) < _ROUNDS and time.monotonic() < end):
        taken = [_run(session, feeds, calls) for session in sessions]
        for found, seconds in zip(ratios, taken[1:], strict=True):
            found.append(taken[0] / seconds)
    return [statistics.median(found) for found in ratios]


def _run(session: Any, feeds: dict[str, np.ndarray], calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        session.run(None, feeds)
    return max(time.thread_time() - start, 1e-9)
