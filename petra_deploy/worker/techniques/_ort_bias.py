"""Bias correction of a graph: the mean error that rounded weights make, taken out of the biases.

    path, changed = corrected(source, tools, wanted)        # the float graph with other biases

A layer with rounded weights w' answers w'x where it was wx; over the calibration rows the difference has a mean,
E[(w' - w) x], for each output channel, which is subtracted from the bias. x is what the layer gets in the float model.
Source: Nagel et al., "Data-Free Quantization" (arXiv 1906.04721), section 4.2, with the mean measured on rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.extension import Tools
from petra_deploy.worker.artifact.settle import values
from petra_deploy.worker.quiet import quiet
from petra_deploy.worker.techniques._ort_graphs import BATCH_ROWS
from petra_deploy.worker.techniques._ort_static import Static, static

Array = NDArray[Any]
_BIAS = 2  # where Conv and Gemm take it


def corrected(source: Path, tools: Tools, wanted: Static) -> tuple[Path, int]:
    """A copy of the file with corrected biases, and in how many layers."""
    trial = tools.scratch / "uncorrected.onnx"
    with quiet():
        static(source, trial, tools, wanted)
    model = onnx.load(str(source))
    shifts = mean_shifts(model, _rounded(trial), tools, wanted.calibration_rows)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed = 0
    for node in list(model.graph.node):
        shift = shifts.get(node.output[0])
        place = _bias_of(model, node, constants) if shift is not None else None
        if shift is None or place is None:
            continue
        holder, index = place
        before = constants[holder.input[index]] if index < len(holder.input) and holder.input[index] else 0.0
        name = f"{node.input[1]}_corrected_bias_{changed}"  # its own: an exporter may give equal biases one name
        model.graph.initializer.append(numpy_helper.from_array((before - shift).astype(np.float32), name))
        holder.input.extend([""] * (index + 1 - len(holder.input)))
        holder.input[index] = name
        changed += 1
    path = tools.scratch / "corrected.onnx"
    onnx.save(model, str(path))
    return path, changed


def mean_shifts(
    model: onnx.ModelProto, rounded: dict[str, Array], tools: Tools, rows: int
) -> dict[str, Array]:  # fmt: skip
    """{output of a layer: E[(w' - w) x] for each of its channels, float64}, by ONNX Runtime on calibration rows.

    `rounded`: weight's name -> w', float32.
    """
    import onnxruntime

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    wanted: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in rounded:
            continue
        weight, error = f"error_{index}", rounded[node.input[1]] - constants[node.input[1]]
        probe.graph.initializer.append(numpy_helper.from_array(error.astype(np.float32), weight))
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = twin.output[0] = f"shift_{index}"
        del twin.input[:]
        twin.input.extend([node.input[0], weight])
        probe.graph.node.append(twin)
        probe.graph.output.append(helper.make_tensor_value_info(twin.output[0], TensorProto.FLOAT, None))
        wanted[twin.output[0]] = node.output[0]
    if not wanted:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    channels = {name: 1 if probe_op == "Conv" else -1 for name, probe_op in _operators(probe, wanted).items()}
    sums: dict[str, Array] = {}
    count = 0
    for feeds in _batches(tools, rows):
        for name, found in zip(wanted, session.run(list(wanted), feeds), strict=True):
            last = np.moveaxis(found, channels[name], -1)
            sums[name] = sums.get(name, 0.0) + len(found) * last.reshape(-1, last.shape[-1]).mean(0, dtype=np.float64)
        count += len(next(iter(feeds.values())))
    return {wanted[name]: total / count for name, total in sums.items()}


def _operators(model: onnx.ModelProto, outputs: dict[str, str]) -> dict[str, str]:
    return {node.output[0]: node.op_type for node in model.graph.node if node.output[0] in outputs}


def _batches(tools: Tools, rows: int) -> list[dict[str, Array]]:
    size = tools.signature.fixed_batch or BATCH_ROWS
    names = [spec.name for spec in tools.signature.inputs]
    batches = [{name: feeds[name] for name in names} for feeds, _ in tools.calibration.first(rows).batches(size)]
    return batches if tools.signature.dynamic_batch else [b for b in batches if len(b[names[0]]) == size]


def _rounded(path: Path) -> dict[str, Array]:
    """w' of each int8 weight of a quantized file, by the name that it had in float."""
    model = onnx.load(str(path))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.dtype == np.int8 and stored.ndim > 1:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            given = [constants[name] for name in node.input if name]
            found[node.input[0].removesuffix("_quantized")] = values(given, axis)
    return found


def _bias_of(
    model: onnx.ModelProto, node: onnx.NodeProto, constants: dict[str, Array]
) -> tuple[onnx.NodeProto, int] | None:  # fmt: skip
    """The node that adds the layer's bias, and at which input; None where the bias is none of its own."""
    if node.op_type != "MatMul":
        known = len(node.input) <= _BIAS or not node.input[_BIAS] or node.input[_BIAS] in constants
        return (node, _BIAS) if known and not _scaled(node) else None
    readers = [other for other in model.graph.node if node.output[0] in other.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    index = 1 - list(readers[0].input).index(node.output[0])
    bias = constants.get(readers[0].input[index])
    return (readers[0], index) if bias is not None and bias.ndim <= 1 else None


def _scaled(node: onnx.NodeProto) -> bool:
    """A Gemm that multiplies: its bias is not simply added."""
    return any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)
