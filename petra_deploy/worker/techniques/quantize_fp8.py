"""Static FP8 (E4M3) for convolutions and linear layers, on the exported graph: for GPUs from Ada and Hopper on.

Q/DQ pairs before each layer: activations per tensor, weights per channel, scales such that the largest
magnitude seen becomes 448, the largest of E4M3. Three bits of mantissa keep outliers and small values alike,
where INT8 gives up the one for the other; INT8 is as fast on such a GPU, so the search tries it first. What is
too narrow for matrix units, depthwise, or of more than 32 taps stays in float, and so do biases, attention
scores and residual additions. ONNX Runtime's processor kernels compute it as it is written.
Sources: Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433); onnxruntime's calibration;
NVIDIA ModelOpt's find_nodes_from_convs_to_exclude.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from annotated_types import Ge
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.quiet import cause, quiet
from petra_deploy.worker.techniques._ort_graphs import WEIGHTED, finished, has_any, mostly_recurrent, prepared, products
from petra_deploy.worker.techniques._ort_static import Static, static

PHASE = Phase.QUANTIZE
ORDER = 3
ACTS_ON: ActsOn = "graph"
_LAYERS = ["Conv", "Gemm", "MatMul"]
_LARGEST = 448.0  # of E4M3
_OF_INT8 = 127.0
_LEAST_SCALE = 2.0**-14  # the least normal FP16: a smaller one would lose its digits, or become 0, by `half`
_OPSET = 19  # the first with FP8
_WIDTH, _TAPS = 16, 32


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    method: Literal["minmax", "percentile"] = "minmax"  # how an activation's range is found
    calibration_rows: Annotated[int, Ge(1)] = 256


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.device != "cuda" or "fp8" not in target.precisions:
        return (f"{target.name} has no fp8",)
    if not has_any(layout, WEIGHTED):
        return ("the model has no convolution or linear layer",)
    return mostly_recurrent(layout)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {"method": Knob.choice("minmax", "percentile")}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of a quantized graph, and how many of its operators are FP8.

    Raises Problem("unsupported") where the quantizer fails or no layer is fit for FP8.
    """
    source = prepared(_raised(model, tools), tools)
    graph = ir.load(source).graph
    left = products(graph) + [node.name or "" for node in graph if node.op_type in _LAYERS and not _fits(node)]

    def quantize(path: Path) -> None:
        static(source, path, tools, Static(types=_LAYERS, excluded=left, symmetric=True, **vars(options)))
        quantized = ir.load(path)
        _to_fp8(quantized, graph)
        ir.save(quantized, path)

    hint = f"layers of {_WIDTH} inputs and outputs or more, not depthwise, become FP8 here"
    path, counts = finished(quantize, tools, hint, to="fp8")
    return Applied(
        path, facts={"fp8": counts, "calibration_rows": min(options.calibration_rows, len(tools.calibration))}
    )


def _raised(model: Path, tools: Tools) -> Path:
    """`model`, or a copy in an opset that has FP8."""
    source = onnx.load(str(model))
    if max(int(o.version) for o in source.opset_import if o.domain in ("", "ai.onnx")) >= _OPSET:
        return model
    path = tools.scratch / "raised.onnx"
    with quiet():
        try:
            onnx.save(onnx.version_converter.convert_version(source, _OPSET), str(path))
        except Exception as error:
            raise Problem("unsupported", f"the graph cannot be raised to opset {_OPSET}, which FP8 needs: "
                          f"{cause(error)}") from error  # fmt: skip
    return path


def _fits(layer: ir.Node) -> bool:
    """Whether matrix units have something of its being FP8."""
    weight = layer.inputs[1].const_value if layer.inputs[1] is not None else None
    if weight is None or len(weight.shape) < 2:
        return False
    shape = tuple(int(size) for size in weight.shape.numpy())
    if layer.op_type == "Conv":
        group = layer.attributes.get_int("group", 1)
        return group == 1 and min(shape[:2]) >= _WIDTH and int(np.prod(shape[2:])) <= _TAPS
    return min(shape[-2:]) >= _WIDTH


def _to_fp8(model: ir.Model, source: ir.Graph) -> None:
    """In place of int8: weights rounded from `source` anew, and the ranges of activations kept."""
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        value, scale, zero = node.inputs
        held, before = _array(value), _array(scale)
        if held is not None and before is not None:
            name = (value.name or "").removesuffix("_quantized")  # type: ignore[union-attr]
            wide = source.initializers[name].const_value.numpy()  # type: ignore[union-attr]
            others = tuple(axis for axis in range(wide.ndim) if axis != _axis(node, wide.ndim) or not before.ndim)
            fine = _scale(np.abs(wide).max(axis=others) / _LARGEST)
            spread = np.expand_dims(fine, others) if before.ndim else fine
            narrow = np.clip(wide / spread, -_LARGEST, _LARGEST).astype(ml_dtypes.float8_e4m3fn)
            _replace(model, value, narrow, node)
            _replace(model, scale, fine, node)
            _replace(model, zero, np.zeros(fine.shape, ml_dtypes.float8_e4m3fn), node)
        elif before is not None and (quantize := value.producer()) is not None:  # type: ignore[union-attr]
            fine = _scale(before * (_OF_INT8 / _LARGEST))
            value.dtype = ir.DataType.FLOAT8E4M3FN  # type: ignore[union-attr]
            _replace(model, scale, fine, node, quantize)
            _replace(model, zero, np.zeros(fine.shape, ml_dtypes.float8_e4m3fn), node, quantize)


def _scale(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(np.maximum(values, _LEAST_SCALE), np.float32)


def _axis(node: ir.Node, dimensions: int) -> int:
    return node.attributes.get_int("axis", 1) % dimensions


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _replace(model: ir.Model, old: ir.Value | None, array: NDArray[Any], *nodes: ir.Node) -> None:
    """Let these nodes read `array` where they read `old`; what nothing reads any more goes."""
    name = f"{old.name}_fp8"  # type: ignore[union-attr]
    value = model.graph.initializers.get(name)
    if value is None:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        model.graph.register_initializer(value)
    for node in nodes:
        for index, given in enumerate(node.inputs):
            if given is old:
                node.replace_input_with(index, value)
    if not old.consumers():  # type: ignore[union-attr]
        model.graph.initializers.pop(old.name)  # type: ignore[union-attr,arg-type]
