"""FP16 for all of a graph that is not int8, by casts in the graph: what a GPU serves in place of FP32.

Weights, activations and the scales of Q/DQ pairs become float16; inputs and outputs keep their
types. A node that any calibration row takes near the end of FP16's range, or whose weights are
beyond it, stays in FP32 with casts around it, and the facts name it. So do int8 layers with a bias
and the pairs around them: ONNX Runtime 1.32 multiplies their two scales in the type they have, and
in FP16 the product underflows (cosine 0.5 to the float model). BF16 has FP32's range and as much speed as
FP16, at three bits less; it is not searched, since no processor here could score it, but a strategy may say
so. Source: the strongly typed networks of TensorRT 10 and later, where precision lives in the graph;
onnxruntime.transformers.float16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as passes
from annotated_types import Ge
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Layout, Phase, Target, Tools
from petra_deploy.core.plan import ActsOn
from petra_deploy.worker.artifact.work import values_of
from petra_deploy.worker.quiet import cause, quiet

PHASE = Phase.FINISH
ACTS_ON: ActsOn = "graph"
SETTLED = True  # part of every candidate for a target that has it
_LARGEST = 65504.0  # of float16
_PASSING = frozenset(
    ["Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten"]
)
_HALF_SCALES = 19  # the opset from which scales of Q/DQ pairs may be FP16
_BRAIN_LAYERS = 22  # and from which convolutions may be BF16
_ROOM = 0.5  # a value above this share of it may overflow on other rows


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    dtype: Literal["fp16", "bf16"] = "fp16"
    calibration_rows: Annotated[int, Ge(1)] = 32


def obstacles(layout: Layout, target: Target) -> tuple[str, ...]:
    if target.device != "cuda":
        return ("FP16 is for GPUs: processors compute it in FP32 and convert",)
    return () if "fp16" in target.precisions else (f"{target.name} has no fp16",)


def knobs(layout: Layout, target: Target) -> dict[str, Knob]:
    return {}


def apply(model: Path, options: Options, tools: Tools) -> Applied:
    """Return the path of the graph in FP16, and which of its nodes stayed in FP32.

    Raises Problem("unsupported") where the conversion fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = onnx.load(str(model))
    if options.dtype == "bf16":
        source = _for_bf16(source)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    wide = _beyond_range(source, options, tools) if options.dtype == "fp16" else []
    exact = _int8_with_bias(source)
    if _opset(source) < _HALF_SCALES:
        exact += [node.name for node in source.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    path = tools.scratch / "model.onnx"
    with quiet():
        try:
            halved = convert_float_to_float16(source, keep_io_types=True, node_block_list=[*wide, *exact])
        except Exception as error:
            raise Problem("unsupported", f"the graph cannot be converted to FP16: {cause(error)}") from error
    _restore(halved, constants)
    if options.dtype == "bf16":
        _to_bf16(halved, constants)
    sorted_ = ir.from_proto(halved)
    passes.RemoveUnusedNodesPass()(sorted_)
    passes.TopologicalSortPass()(sorted_)
    ir.save(sorted_, path)
    return Applied(path, facts={"fp32_nodes": wide, "int8_with_bias": len(exact)})


def _beyond_range(model: onnx.ModelProto, options: Options, tools: Tools) -> list[str]:
    """Nodes that read or write something too large for FP16. Unnamed ones get a name."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    rows = tools.calibration.first(options.calibration_rows)
    fixed = tools.signature.fixed_batch
    largest: dict[str, float] = {}
    for feeds, _ in rows.batches(fixed or 8):
        given = {spec.name: feeds[spec.name] for spec in tools.signature.inputs}
        if fixed is not None:  # the last batch is filled up
            given = {name: np.resize(values, (fixed, *values.shape[1:])) for name, values in given.items()}
        for name, values in values_of(model, given).items():
            largest[name] = max(largest.get(name, 0.0), _magnitude(values))
    return [
        node.name
        for node in model.graph.node
        if any(largest.get(name, 0.0) > _ROOM * _LARGEST for name in (*node.input, *node.output))
    ]


def _int8_with_bias(model: onnx.ModelProto) -> list[str]:
    """Int8 layers with a bias, the Q/DQ pairs at their doors, and what lies between them and the next pair."""
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    made = {name: node for node in model.graph.node for name in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    found: dict[str, onnx.NodeProto] = {}
    todo = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and len(node.input) > 2
        and all(name in made and made[name].op_type == "DequantizeLinear" for name in node.input[:2])
        and made[node.input[1]].input[0] in integers
    ]
    while todo:
        node = todo.pop()
        if node.name in found:
            continue
        found[node.name] = node
        before = [made[name] for name in node.input if name in made]
        after = [reader for name in node.output for reader in used.get(name, [])]
        pair = "QuantizeLinear" if node.op_type == "DequantizeLinear" else "DequantizeLinear"
        todo += [other for other in before if other.op_type == pair]
        if node.op_type == "QuantizeLinear":
            todo += [other for other in after if other.op_type == "DequantizeLinear"]
        else:
            todo += [other for other in after if other.op_type in _PASSING or other.op_type == "QuantizeLinear"]
    return list(found)


def _restore(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> None:
    """Give FP32 nodes what they read as it was: the converter rounds it to FP16 and casts it back."""
    graph = model.graph
    seen: set[str] = set()
    for node in list(graph.node):  # ONNX Runtime before 1.32 makes one cast twice
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)
    for node in [n for n in graph.node if n.op_type == "Cast" and n.input[0] in constants]:
        if constants[node.input[0]].dtype == np.float32 and node.attribute[0].i == onnx.TensorProto.FLOAT:
            graph.initializer.append(onnx.numpy_helper.from_array(constants[node.input[0]], node.output[0]))
            graph.node.remove(node)
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    floats = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    as_it_was = {}
    for name, node in casts.items():
        before = casts.get(node.input[0])  # FP32 to FP16, as the converter makes them, and back
        if before is not None and node.attribute[0].i == onnx.TensorProto.FLOAT:
            source = before.input[0]
            if source in floats or source.endswith("_cast_to_fp16"):
                as_it_was[name] = source
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = as_it_was.get(name, name)


def _opset(model: onnx.ModelProto) -> int:
    return max(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _for_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in an opset whose operators take BF16."""
    if _opset(model) >= _BRAIN_LAYERS:
        return model
    try:
        return onnx.version_converter.convert_version(model, _BRAIN_LAYERS)
    except Exception as error:
        raise Problem("unsupported", f"the graph cannot be raised to opset {_BRAIN_LAYERS}, which BF16 needs: "
                      f"{cause(error)}") from error  # fmt: skip


def _to_bf16(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> None:
    """BF16 wherever the converter put FP16; weights are rounded from FP32 anew."""
    half, brain = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            values = constants.get(tensor.name, onnx.numpy_helper.to_array(tensor)).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i = brain
            if attribute.t.data_type == half:
                values = onnx.numpy_helper.to_array(attribute.t).astype(ml_dtypes.bfloat16)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = brain


def _magnitude(values: Any) -> float:
    """The largest finite magnitude of floats; masks may hold minus infinity on purpose."""
    if not np.issubdtype(values.dtype, np.floating) or not values.size:
        return 0.0
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
