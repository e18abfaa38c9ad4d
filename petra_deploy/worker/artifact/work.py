"""What each operator of an ONNX graph has to do: multiply-accumulates, and bytes read and written.

    count(path, feeds)          # (Work(op="Conv", macs=4.7e6, ...), ...)
    count_nodes(optimized(path), feeds)         # of the graph that ONNX Runtime makes of it: every node

Shapes and types are those of a real run in which every value between operators is looked at, so
whatever ONNX Runtime runs is counted. Nothing is timed here. Operators that only rename or that
every runtime folds into a neighbour (Reshape; Quantize- and DequantizeLinear beside an integer
operator) have no work. Counting of multiply-accumulates: as in FLOP counts of papers, halved.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.outcome import Work
from petra_deploy.core.target import Precision
from petra_deploy.worker.quiet import cause

Array = NDArray[Any]

_FREE = frozenset(
    ("Constant", "Shape", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout",
     "QuantizeLinear", "DequantizeLinear")
)  # fmt: skip
_FREE_NODES = frozenset(["Constant"])  # of a graph that is run as it stands
_POINTWISE = frozenset(
    ("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Gelu", "Erf",
     "Softplus", "Mish", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Pow", "Exp", "Log", "Min", "Max", "Where",
     "Cast", "BatchNormalization")
)  # fmt: skip
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}  # gates
_INTEGER_MATMUL = ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm")
_INTEGER = frozenset((*_INTEGER_MATMUL, "ConvInteger", "QLinearConv", "DynamicQuantizeLSTM", "QAttention"))
_ATTENTION = frozenset(("Attention", "QAttention", "MultiHeadAttention"))  # fused by ONNX Runtime, with 3-D inputs
_GEMM = frozenset(("Gemm", "FusedGemm", "QGemm"))
_MATMUL = frozenset(("MatMul", "FusedMatMul", *_GEMM, *_INTEGER_MATMUL))
_CONV = frozenset(["Conv", "ConvTranspose", "ConvInteger", "FusedConv", "QLinearConv"])
_SCALED = frozenset(["QLinearConv", "QLinearMatMul", "QGemm"])  # input, scale, zero point, weights, scale, zero point
_BY_TYPE: dict[str, Precision] = {
    "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8", "float8_e4m3fn": "fp8",
}  # fmt: skip


def count(path: Path, feeds: Mapping[str, Array]) -> tuple[Work, ...]:
    """The work of one call with `feeds`, an operator an entry, in the graph's order.

    Raises Problem("mismatch") where ONNX Runtime does not run the file.
    """
    return _count(onnx.load(str(path)), feeds, _FREE)


def count_nodes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> tuple[Work, ...]:
    """The same of a graph that runs as it stands: renaming and quantizing are nodes like any other."""
    return _count(model, feeds, _FREE_NODES)


def _count(model: onnx.ModelProto, feeds: Mapping[str, Array], free: frozenset[str]) -> tuple[Work, ...]:
    values = values_of(model, feeds)
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    counter = _Counter(values, made, used, weights, free)
    return tuple(counter.work(node) for node in graph.node if node.op_type not in free)


class _Counter:
    def __init__(
        self, values: Mapping[str, Array], made: Mapping[str, onnx.NodeProto],
        used: Mapping[str, Sequence[onnx.NodeProto]], weights: set[str], free: frozenset[str],
    ) -> None:  # fmt: skip
        self.values, self.made, self.used, self.weights, self.free = values, made, used, weights, free

    def work(self, node: onnx.NodeProto) -> Work:
        sources = [self._read(name) for name in node.input if name]
        constant = [name in self.weights for name in sources]
        held = sum(self._bytes(name) for name, is_constant in zip(sources, constant, strict=True) if is_constant)
        read = sum(self._bytes(name) for name, is_constant in zip(sources, constant, strict=True) if not is_constant)
        written = sum(self._written(name) for name in node.output if name)
        if node.op_type == "Gather":
            held, read = (min(held, written), read) if held else (0.0, min(read, written))  # of a table, the rows taken
        macs, inner, outer = self._macs(node)
        return Work(
            op=node.op_type if not self._depthwise(node) else "DepthwiseConv", macs=macs, weight_bytes=held,
            activation_bytes=read + written, precision=self._precision(node, sources), inner=inner, outer=outer,
            taps=self._taps(node), steps=self._steps(node), joined=self._joined(node),
        )  # fmt: skip

    def _read(self, name: str) -> str:
        """The value that is really read: the integers behind a DequantizeLinear, and what was only renamed."""
        while (node := self.made.get(name)) is not None and node.op_type in self.free and node.input:
            if node.op_type == "QuantizeLinear":
                break
            name = node.input[0]
            if node.op_type == "DequantizeLinear":
                break
        return name

    def _written(self, name: str) -> float:
        """Bytes of an output; of its integers where those alone are read."""
        readers = self.used.get(name, [])
        if "QuantizeLinear" in self.free and readers and all(r.op_type == "QuantizeLinear" for r in readers):
            return self._bytes(readers[0].output[0])
        return self._bytes(name)

    def _bytes(self, name: str) -> float:
        value = self.values.get(name)
        return float(value.nbytes) if value is not None else 0.0

    def _shape(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        return value.shape if value is not None else ()

    def _precision(self, node: onnx.NodeProto, sources: Sequence[str]) -> Precision:
        if node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
            return "int8"
        kinds = [str(self.values[name].dtype) for name in sources[:2] if name in self.values]
        found = {_BY_TYPE.get(kind, "fp32") for kind in kinds}
        return found.pop() if len(found) == 1 else "fp32"

    def _depthwise(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _CONV and _attribute(node, "group", 1) > 1

    def _taps(self, node: onnx.NodeProto) -> int:
        kernel = self._shape(node.input[3 if node.op_type in _SCALED else 1]) if node.op_type in _CONV else ()
        return math.prod(kernel[2:])

    def _steps(self, node: onnx.NodeProto) -> int:
        shape = self._shape(node.input[0]) if node.op_type in _RECURRENT else ()
        return shape[0] if len(shape) == 3 else 1

    def _joined(self, node: onnx.NodeProto) -> bool:
        """Whether it works element by element on what one computing operator alone hands it."""
        if node.op_type not in _POINTWISE:
            return False
        for name in node.input:
            before = self.made.get(self._through(name))
            if before is not None and before.op_type in (_CONV | _MATMUL | _POINTWISE):
                return True
        return False

    def _through(self, name: str) -> str:
        """Behind DequantizeLinear(QuantizeLinear(x)): x."""
        for kind in ("DequantizeLinear", "QuantizeLinear"):
            node = self.made.get(name)
            if node is not None and node.op_type == kind:
                name = node.input[0]
        return name

    def _macs(self, node: onnx.NodeProto) -> tuple[float, int, int]:
        """Multiply-accumulates, and the widths summed over and put out; (0, 0, 0) of what has none."""
        shapes = [self._shape(name) for name in node.input]
        if node.op_type in _SCALED:
            shapes = [shapes[0], shapes[3]]
        result = self._shape(node.output[0]) if node.output[0] else ()
        if node.op_type in _CONV and len(shapes) > 1 and len(shapes[1]) > 2:
            kernel = shapes[1]
            taps = math.prod(kernel[2:])
            if node.op_type == "ConvTranspose":
                return math.prod(shapes[0]) * kernel[1] * taps, kernel[0], kernel[1] * _attribute(node, "group", 1)
            return math.prod(result) * kernel[1] * taps, kernel[1] * taps, kernel[0]
        if node.op_type in _MATMUL and len(shapes) > 1 and shapes[0] and shapes[1]:
            inner = shapes[0][0 if node.op_type in _GEMM and _attribute(node, "transA", 0) else -1]
            return math.prod(result) * inner, inner, result[-1] if result else 1
        if node.op_type in _RECURRENT:
            hidden = _attribute(node, "hidden_size", 1)
            steps, batch, width = shapes[0] if len(shapes[0]) == 3 else (1, 1, 1)
            directions = 2 if _attribute(node, "direction", b"forward") == b"bidirectional" else 1
            each = _RECURRENT[node.op_type] * hidden * (width + hidden) * directions
            return steps * batch * each, width + hidden, hidden
        if node.op_type in _ATTENTION and len(shapes[0]) == 3 and len(result) == 3:
            projected = math.prod(shapes[0]) * shapes[1][-1] if node.op_type in ("Attention", "QAttention") else 0
            return projected + 2.0 * math.prod(result) * result[1], shapes[0][-1], result[-1]
        if node.op_type == "Einsum":
            widest = max((math.prod(shape) for shape in shapes if shape), default=0)
            return float(widest * (result[-1] if result else 1)), 1, result[-1] if result else 1
        return 0.0, 0, 0


def values_of(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """name -> every value of the graph in one run, constants too; optimizations off.

    Raises Problem("mismatch") where ONNX Runtime does not run it.
    """
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    given = {output.name for output in asked.graph.output}
    for node in asked.graph.node:
        asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name and name not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = {output.name: output.type for output in session.get_outputs()}
        found = dict(zip(kinds, session.run(list(kinds), dict(feeds)), strict=True))
    except Exception as error:
        raise Problem("mismatch", f"ONNX Runtime does not run the exported file: {cause(error)}") from error
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    for name in arrays:
        if kinds[name] == "tensor(float8e4m3fn)":  # it comes as uint8
            arrays[name] = arrays[name].view(ml_dtypes.float8_e4m3fn)
    return {**constants, **feeds, **arrays}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
