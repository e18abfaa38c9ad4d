"""From a module to an ONNX file: the dynamo exporter, with the names and dimensions of the signature.

    facts = export(model, signature, example, folder / "model.onnx")    # {"opset": 20, ...}

Every symbolic dimension of the signature stays dynamic in the file, under its own name. Nothing
of this machine (paths, stack traces) is written into it. Quantized modules (torch.fx graphs of
Intel Neural Compressor) go the same way; `model/graph.py` then shapes the Q/DQ pairs.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.export import _patches

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature, TensorSpec
from petra_deploy.worker.artifact import graph
from petra_deploy.worker.artifact.settle import settle
from petra_deploy.worker.quiet import cause, quiet

OPSET = 20  # 23 brings an Attention that ONNX Runtime refuses with a broadcast mask


def export(
    model: torch.nn.Module, signature: Signature, example: Sequence[torch.Tensor], path: Path
) -> dict[str, object]:
    """Write `model` to `path`; `example` holds one tensor an input, on any device.

    Returns {"opset": int, "operators": {type: count}}. Raises Problem: "unsupported" when the
    exporter cannot, "mismatch" when the file's inputs or outputs are not the signature's.
    """
    example = tuple(_grown(tensor.cpu(), spec) for tensor, spec in zip(example, signature.inputs, strict=True))
    try:
        with quiet(), capturing():
            program = torch.onnx.export(
                model.cpu(),
                example,
                dynamo=True,
                dynamic_shapes=dynamic_shapes(model, signature),
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise Problem(
            "unsupported",
            f"the model cannot be exported to ONNX: {cause(error)}",
            "see the log; data-dependent Python control flow and custom operators are the usual reasons",
        ) from error
    if program is None:
        raise Problem("unsupported", "the model cannot be exported to ONNX: the exporter returned nothing")
    exported: ir.Model = program.model
    graph.tidy(exported, lower=getattr(model, "meta", {}).get("lower", True))
    _name_dimensions(exported, signature)
    graph.save(exported, path)
    if getattr(model, "meta", {}).get("lower") and settle(path):  # quantized, and for ONNX Runtime
        exported = ir.load(path)
    return {"opset": exported.opset_imports[""], "operators": graph.operators(exported)}


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Within, torch.export and torch.onnx.export take attention and recurrent layers of any length.

    Fused attention has no ONNX form. LSTM and GRU of dynamic length are traced by a loop that torch
    registers for the time of an export, but a kernel remembered from an earlier export would be
    used in its place (torch 2.13): the second model of a process would fail where the first passed.
    """
    recurrent = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            for name in ("register_lstm_while_loop_decomposition", "register_gru_while_loop_decomposition"):
                if register := getattr(_patches, name, None):
                    stack.enter_context(register())
            for operator in recurrent:
                operator._dispatch_cache.clear()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for operator in recurrent:
            operator._dispatch_cache.clear()


def dynamic_shapes(model: torch.nn.Module, signature: Signature) -> tuple[Any, ...]:
    """What torch.export wants as `dynamic_shapes`, in the structure of this module's forward."""
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {axis: dynamic for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in signature.inputs
    )
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


def example_of(samples: Samples, signature: Signature) -> tuple[torch.Tensor, ...]:
    """One tensor an input, of the first rows: two where the batch is dynamic, else as many as it takes."""
    feeds, _ = next(samples.batches(signature.fixed_batch or 2))
    return tuple(
        _grown(torch.from_numpy(feeds[spec.name]), spec) for spec in signature.inputs
    )  # fmt: skip


def _grown(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """At least two in every dynamic dimension: the exporter takes a 1 for a constant."""
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and tensor.shape[axis] < 2:
            tensor = torch.repeat_interleave(tensor, 2, dim=axis)
    return tensor


def _name_dimensions(model: ir.Model, signature: Signature) -> None:
    """Give the file's inputs and outputs the signature's dimension names; check all else."""
    for role, values, specs in (
        ("inputs", model.graph.inputs, signature.inputs),
        ("outputs", model.graph.outputs, signature.outputs),
    ):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise Problem(
                "mismatch",
                f"the exported file has the {role} {[value.name for value in values]}, "
                f"not {[spec.name for spec in specs]}",
            )
        for value, spec in zip(values, specs, strict=True):
            if value.dtype is None or value.dtype.numpy() != spec.dtype:
                raise Problem("mismatch", f"the exported {role[:-1]} {spec.name} is {value.dtype}, not {spec.dtype}")
            if value.shape is None or value.shape.rank() != len(spec.shape):
                raise Problem("mismatch", f"the exported {role[:-1]} {spec.name} has the shape {value.shape}")
            value.shape = ir.Shape(
                [
                    given if isinstance(given, str) else (size if isinstance(size, int) else given)
                    for given, size in zip(spec.shape, value.shape, strict=True)
                ]
            )
