"""Small graphs that show what a processor attains: each is dominated by one kind of operator.

    for probe in probes():
        probe.model, probe.feeds            # an ONNX model, and what to run it on

Shapes are those of layers of middling networks: 3x3 and 1x1 convolutions from 16 to 512 channels,
depthwise ones, linear layers of one row and of many, attention, recurrent layers, what stands
between them, and chains of operators too small to cost more than their start. Weights are random.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
_OPSET, _IR = 20, 10
_LOADED = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class Probe:
    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]


@dataclass
class Net:
    """A graph in the making; `x` is the name of what the last operator gave."""

    shape: tuple[int, ...]
    x: str = "input"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: dict[str, Array] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def hold(self, values: Array) -> str:
        name = f"w{len(self.held)}"
        self.held[name] = values
        return name

    def weights(self, *shape: int) -> str:
        return self.hold(self.random.normal(0, 0.05, shape).astype(np.float32))

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        self.x = names[0]
        return self.x

    def scale(self, zero: int | None = None, scale: float = 0.02) -> tuple[str, str]:
        """A scale, and a zero point: of uint8 values, or of int8 ones where it is 0."""
        kind = np.int8 if zero == 0 else np.uint8
        return self.hold(np.array(scale, np.float32)), self.hold(np.array(128 if zero is None else zero, kind))

    def integers(self, *shape: int) -> str:
        return self.hold(self.random.integers(-60, 61, shape).astype(np.int8))

    def contrib(self, op: str, *inputs: str, **attributes: Any) -> str:
        """An operator of ONNX Runtime's own."""
        return self.node(op, *inputs, domain="com.microsoft", **attributes)

    def probe(self, name: str) -> Probe:
        graph = helper.make_graph(
            self.nodes, "probe", [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)],
            [onnx.ValueInfoProto(name=self.x)], [numpy_helper.from_array(v, n) for n, v in self.held.items()],
        )  # fmt: skip
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)],
            ir_version=_IR,
        )
        return Probe(name, model, {"input": self.random.normal(0, 1, self.shape).astype(np.float32)})


def probes() -> Iterator[Probe]:
    """All of them, convolutions first."""
    for int8 in (False, True):
        yield from _convolutions(int8)
        yield from _linear(int8)
        yield from _recurrent(int8)
        yield from _between(int8)
        yield from _starts(int8)


def _convolutions(int8: bool) -> Iterator[Probe]:
    plain = [(16, 28, 3), (16, 7, 3), (32, 32, 3), (64, 32, 3), (64, 16, 3), (64, 4, 3), (128, 16, 3), (256, 8, 3),
             (512, 4, 3), (32, 16, 1), (96, 14, 1), (128, 28, 1), (160, 4, 1), (512, 7, 1)]  # fmt: skip
    for channels, size, kernel in plain:
        yield conv_chain([channels] * 4, size, kernel, 1, int8)
    yield conv_chain([3, 64], 32, 3, 1, int8)
    for wide, narrow, size in ((96, 16, 14), (384, 64, 7), (960, 160, 4)):
        yield conv_chain([narrow, wide, narrow, wide], size, 1, 1, int8)
    for channels, size in ((32, 14), (96, 14), (192, 7), (384, 7), (960, 4), (64, 56)):
        yield conv_chain([channels] * 4, size, 3, channels, int8)


def conv_chain(widths: Sequence[int], size: int, kernel: int, groups: int, int8: bool) -> Probe:
    net = Net((1, widths[0], size, size))
    q = net.scale() if int8 else ("", "")
    if int8:
        net.node("QuantizeLinear", net.x, *q)
    for before, after in itertools.pairwise(widths):
        shape = after, before // groups, kernel, kernel
        around: dict[str, Any] = {"pads": [kernel // 2] * 4, "group": groups}
        if int8:
            s, z = net.hold(np.full(after, 0.002, np.float32)), net.hold(np.zeros(after, np.int8))
            bias = net.hold(np.zeros(after, np.int32))
            net.node("QLinearConv", net.x, *q, net.integers(*shape), s, z, *q, bias, **around)
        else:
            net.node("Relu", net.node("Conv", net.x, net.weights(*shape), net.weights(after), **around))
    if int8:
        net.node("DequantizeLinear", net.x, *q)
    return net.probe(f"{'int8' if int8 else 'fp32'} conv {widths} {size} {kernel}x{kernel} groups {groups}")


def _linear(int8: bool) -> Iterator[Probe]:
    for rows, width, out in ((1, 512, 512), (1, 1280, 64), (16, 256, 256), (64, 32, 64), (64, 64, 64), (64, 256, 256),
                             (64, 256, 1024), (64, 1024, 256), (64, 768, 768), (512, 256, 256)):  # fmt: skip
        net = Net((rows, width))
        for before, after in ((width, out), (out, width)):
            _layer(net, before, after, int8)
        yield net.probe(f"{'int8' if int8 else 'fp32'} linear {rows}x{width}x{out}")
    if not int8:
        for heads, length, width in ((4, 64, 64), (12, 128, 64), (2, 64, 16)):
            net = Net((1, heads, length, width))
            x = net.x
            turned = net.node("Transpose", x, perm=[0, 1, 3, 2])
            net.node("MatMul", net.node("MatMul", x, turned), x)
            yield net.probe(f"attention {heads}x{length}x{width}")


def _layer(net: Net, before: int, after: int, int8: bool) -> None:
    """A linear layer with its bias; int8 with the activation quantized at each call."""
    if not int8:
        net.node("Add", net.node("MatMul", net.x, net.weights(before, after)), net.weights(after))
        return
    s, z = net.hold(np.full(after, 0.002, np.float32)), net.hold(np.zeros(after, np.int8))
    net.contrib("DynamicQuantizeMatMul", net.x, net.integers(before, after), s, z, net.weights(after))


def _recurrent(int8: bool) -> Iterator[Probe]:
    for steps, rows, width, hidden in ((28, 1, 28, 256), (28, 1, 256, 256), (28, 16, 64, 256), (50, 1, 32, 32),
                                       (20, 1, 64, 128), (20, 16, 64, 64)):  # fmt: skip
        name = f"{steps}x{rows}x{width}x{hidden}"
        net = Net((steps, rows, width))
        if int8:
            w, r, bias = (
                net.integers(1, width, 4 * hidden),
                net.integers(1, hidden, 4 * hidden),
                net.weights(1, 8 * hidden),
            )
            s, z = net.hold(np.full(1, 0.002, np.float32)), net.hold(np.zeros(1, np.int8))
            net.contrib("DynamicQuantizeLSTM", net.x, w, r, bias, "", "", "", "", s, z, s, z, hidden_size=hidden)
            yield net.probe(f"int8 lstm {name}")
            continue
        for op, gates, more in (("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1})):
            net = Net((steps, rows, width))
            w, r = net.weights(1, gates * hidden, width), net.weights(1, gates * hidden, hidden)
            net.node(op, net.x, w, r, net.weights(1, 2 * gates * hidden), hidden_size=hidden, **more)
            yield net.probe(f"{op.lower()} {name}")


def _between(int8: bool) -> Iterator[Probe]:
    """What stands between layers, at sizes from a cache line to beyond the second cache."""
    for rows, width in ((64, 64), (64, 256), (64, 1024), (1024, 256)):
        for name, chain in _CHAINS[int8].items():
            net = Net((1, rows, width))
            chain(net, rows, width)
            yield net.probe(f"{name} {rows}x{width}")


def _sums(net: Net, rows: int, width: int) -> None:
    x = net.x
    for _ in range(4):
        net.node("Mul", net.node("Add", net.x, x), x)


def _curves(net: Net, rows: int, width: int) -> None:
    for _ in range(2):
        net.node("Softmax", net.node("Gelu", net.x))
        net.node("LayerNormalization", net.x, net.weights(width), net.weights(width))
        net.node("Sigmoid", net.node("Tanh", net.x))


def _moves(net: Net, rows: int, width: int) -> None:
    """Into heads and back, as attention does."""
    split, back = net.hold(np.array([1, rows, 4, width // 4])), net.hold(np.array([1, rows, width]))
    for _ in range(4):
        net.node("Transpose", net.node("Reshape", net.x, split), perm=[0, 2, 1, 3])
        net.node("Reshape", net.x, back)


def _integer_sums(net: Net, rows: int, width: int) -> None:
    q = net.scale()
    x = net.node("QuantizeLinear", net.x, *q)
    for _ in range(8):
        net.contrib("QLinearAdd", net.x, *q, x, *q, *q)
    net.node("DequantizeLinear", net.x, *q)


def _conversions(net: Net, rows: int, width: int) -> None:
    q = net.scale()
    for _ in range(3):
        net.node("Neg", net.node("DequantizeLinear", net.node("QuantizeLinear", net.x, *q), *q))


_CHAINS: dict[bool, dict[str, Callable[[Net, int, int], None]]] = {
    False: {"sums": _sums, "curves": _curves, "moves": _moves},
    True: {"int8 sums": _integer_sums, "conversions": _conversions},
}


def _starts(int8: bool) -> Iterator[Probe]:
    """Operators of a few numbers each: what is left is what it costs to start one."""
    precision = "int8" if int8 else "fp32"
    for count in (2, 40):
        net = Net((1, 8))
        q = net.scale()
        x = net.node("QuantizeLinear", net.x, *q) if int8 else net.x
        for index in range(count):
            if int8:
                net.contrib("QLinearAdd", net.x, *q, x, *q, *q)
            else:
                net.node(("Add", "Mul", "Sub", "Max")[index % 4], net.x, x)
        if int8:
            net.node("DequantizeLinear", net.x, *q)
        yield net.probe(f"{precision} chain of {count}")
    yield conv_chain([8] * 12, 2, 1, 1, int8)
    net = Net((4, 8))
    for _ in range(8):
        _layer(net, 8, 8, int8)
    yield net.probe(f"{precision} small linear layers")
