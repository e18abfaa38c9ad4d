"""Whether an ONNX file still computes what its module computes, on real rows at two batch sizes.

    batches = probes(calibration, signature)                       # [{name: array}, ...]
    expected = run_module(model, signature, batches)
    compare(expected, run_file(path, batches), signature, EXACT)   # facts, or Problem("mismatch")

A file that is not its module is never passed on. Quantized files differ on purpose: they are held
to `CLOSE` against their own fake-quantized module and to `RELATED` against the float one; how far
they are is kept in the facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature
from petra_deploy.worker.quiet import cause

Array = NDArray[Any]
Outputs = list[list[Array]]  # one list of arrays a batch, in the signature's order
SIZES = (1, 5)  # batch sizes compared; 1 is the one that exporters take for a constant


@dataclass(frozen=True)
class Limit:
    """Beyond it a file counts as broken: `error` relative to the largest output, `cosine` from below."""

    name: str
    error: float | None
    cosine: float


EXACT = Limit("exactly", error=1e-3, cosine=0.999)
CLOSE = Limit("closely", error=None, cosine=0.95)
RELATED = Limit("at all", error=None, cosine=0.5)


def probes(samples: Samples, signature: Signature, sizes: Sequence[int] = SIZES) -> list[dict[str, Array]]:
    """The first rows as batches of these sizes; of the one size that a static batch takes."""
    wanted = (signature.fixed_batch,) if signature.fixed_batch else sizes
    return [_rows(samples, signature, np.arange(start, start + size) % len(samples))
            for start, size in zip(np.cumsum([0, *wanted]), wanted, strict=False)]  # fmt: skip


def run_module(model: torch.nn.Module, signature: Signature, batches: Sequence[Mapping[str, Array]]) -> Outputs:
    """Raises Problem("diverged") where the module answers NaN or infinity (minus infinity may be a mask)."""
    results: Outputs = []
    with torch.no_grad():
        for feeds in batches:
            outputs = model(*(torch.from_numpy(feeds[spec.name]) for spec in signature.inputs))
            results.append([output.detach().cpu().numpy() for output in outputs])
    for spec, arrays in zip(signature.outputs, zip(*results, strict=True), strict=True):
        if any(array.dtype.kind == "f" and (np.isnan(array) | np.isposinf(array)).any() for array in arrays):
            raise Problem("diverged", f"the model answers NaN or infinity in its output {spec.name}")
    return results


def run_file(path: Path, batches: Sequence[Mapping[str, Array]]) -> Outputs:
    """Run an ONNX file by ONNX Runtime on one thread. Raises Problem("mismatch") where it does not run.

    One with FP8 runs as it is written: ONNX Runtime 1.32 drops a Relu before FP8 as it may before uint8.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if _has_fp8(path):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
            wide = _in_fp32(path)
            if wide is None:
                raise
            session = onnxruntime.InferenceSession(wide, options, providers=["CPUExecutionProvider"])
        return [session.run(None, dict(feeds)) for feeds in batches]
    except Exception as error:
        raise Problem("mismatch", f"ONNX Runtime does not run the exported file: {cause(error)}") from error


def _has_fp8(path: Path) -> bool:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in graph.initializer)


def _in_fp32(path: Path) -> bytes | None:
    """A file in BF16, which no processor kernel takes, with its rounded weights computed in FP32; else None."""
    import onnx

    model = onnx.load(str(path))
    brain, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    rounded = [tensor for tensor in tensors if tensor.data_type == brain]
    if not rounded:
        return None
    for tensor in rounded:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == brain:
                attribute.i = single
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == brain:
            value.type.tensor_type.elem_type = single
    return bytes(model.SerializeToString())


def compare(expected: Outputs, found: Outputs, signature: Signature, limit: Limit) -> dict[str, object]:
    """{output: {"cosine", "error"}}: over all batches; the error is relative to the largest output.

    Whole numbers have {"equal": share}. Raises Problem("mismatch") for another shape or dtype, NaN,
    or outputs further apart than `limit`.
    """
    facts: dict[str, object] = {}
    for index, spec in enumerate(signature.outputs):
        pairs = [(a[index], b[index]) for a, b in zip(expected, found, strict=True)]
        for wanted, got in pairs:
            if wanted.shape != got.shape or wanted.dtype != got.dtype:
                raise Problem(
                    "mismatch",
                    f"output {spec.name} of the exported file is {got.dtype}{list(got.shape)}, "
                    f"of the module {wanted.dtype}{list(wanted.shape)}",
                )
        a = np.concatenate([wanted.reshape(-1) for wanted, _ in pairs])
        b = np.concatenate([got.reshape(-1) for _, got in pairs])
        judge = _of_numbers if a.dtype.kind == "f" else _of_classes
        facts[spec.name] = judge(a, b, spec.name, limit)
    return facts


def _of_numbers(a: Array, b: Array, name: str, limit: Limit) -> dict[str, float]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        raise Problem("mismatch", f"output {name} of the exported file is not finite where the module's is")
    a, b = a[finite], b[finite]
    error = float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-6))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms > 1e-12 else 1.0 if error < 1e-3 else 0.0
    if (limit.error is not None and error > limit.error) or cosine < limit.cosine:
        raise Problem(
            "mismatch",
            f"output {name} of the exported file does not follow the module {limit.name}: "
            f"cosine {cosine:.4f}, largest error {error:.2g} of the largest value",
        )
    return {"cosine": round(cosine, 6), "error": float(f"{error:.3g}")}


def _of_classes(a: Array, b: Array, name: str, limit: Limit) -> dict[str, float]:
    equal = float(np.mean(a == b)) if a.size else 1.0
    if limit.error is not None and equal < limit.cosine:
        raise Problem("mismatch", f"output {name} of the exported file equals the module's in {equal:.1%} only")
    return {"equal": round(equal, 6)}


def _rows(samples: Samples, signature: Signature, rows: Array) -> dict[str, Array]:
    return {spec.name: np.array(samples.inputs[spec.name][rows], order="C") for spec in signature.inputs}
