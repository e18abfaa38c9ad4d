"""The ONNX graph after the exporter: small exact rewrites, so that runtimes fuse all they can.

    model = ir.load(path); tidy(model); save(model, path)
    operators(model)                        # {"Conv": 20, "Relu": 17, ...}
    quantized(operators(model))             # how many of them work on integers

The rewrites are in `tidy/`, one a file. They leave results unchanged (to rounding) and are
harmless on float graphs. With `lower=True` linear and LSTM layers take ONNX Runtime's own
operators where these are faster; leave it off for graphs that another runtime reads.
"""

import collections
from pathlib import Path

import onnx_ir as ir

from petra_deploy.core.errors import Problem
from petra_deploy.worker.artifact.tidy import (
    concat_norm,
    embedding,
    float_layers,
    linear,
    pooling,
    recurrent,
    shape_constants,
    strip,
)
from petra_deploy.worker.artifact.tidy.bench import Bench

MOST_BYTES = 2**31 - 1  # of a protobuf message
PORTABLE = (concat_norm, embedding, pooling, shape_constants)
LOWERING = (linear, recurrent, float_layers)


def tidy(model: ir.Model, *, lower: bool = True) -> dict[str, int]:
    """Rewrite `model` in place; returns how often each rewrite changed something."""
    bench = Bench(model)
    rewrites = (*(LOWERING if lower else ()), *PORTABLE, strip)
    return {module.__name__.rpartition(".")[2]: module.rewrite(bench) for module in rewrites}


def save(model: ir.Model, path: Path) -> None:
    """One file, weights inside. Raises Problem where they are more than a protobuf can hold."""
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if weights > MOST_BYTES:
        raise Problem("unsupported", f"the weights are {weights / 2**30:.1f} GiB; one ONNX file holds at most 2 GiB")
    ir.save(model, path)


def operators(model: ir.Model) -> dict[str, int]:
    """Operator type -> count, subgraphs included."""
    return dict(collections.Counter(node.op_type for node in model.graph.all_nodes()))


def quantized(model: ir.Model) -> dict[str, int]:
    """Operator type -> how many of its nodes work on int8 weights or activations.

    Counted are operators that compute (Conv, Gemm, MatMul, LSTM, Gather, Add ...) whose inputs come
    through DequantizeLinear, tables read in int8, and ONNX Runtime's integer operators.
    """
    counts: collections.Counter[str] = collections.Counter()
    for node in model.graph.all_nodes():
        if node.op_type in INTEGER or (node.op_type == "Gather" and _small(node.inputs[0])):
            counts[node.op_type] += 1
        elif node.op_type in COMPUTING and node.inputs:
            producers = [value.producer() for value in node.inputs[:2] if value is not None]
            if producers and all(p is not None and p.op_type == "DequantizeLinear" for p in producers):
                counts[node.op_type] += 1
    return dict(counts)


def _small(value: ir.Value | None) -> bool:
    """Whether it is a constant of int8 or uint8."""
    return value is not None and value.const_value is not None and value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)


INTEGER = frozenset({
    "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
    "QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QGemm",
    "QLinearGlobalAveragePool", "QLinearAveragePool",
})  # fmt: skip
COMPUTING = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "Add", "Mul", "GlobalAveragePool", "AveragePool",
})  # fmt: skip
