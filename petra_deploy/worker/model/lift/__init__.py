"""Lift an ONNX graph into a torch module, so that models which came as graphs can be shrunk and trained.

    module = lift(path, signature, calibration)          # an Adapter, eval mode: layers under their own names
    check(module, path, signature, calibration)          # it answers as the file does, and can be exported

The module runs the graph node by node; nodes with weights are torch's own layers. Each operator is
one function (operators/), so a graph is lifted as a whole or not at all: `Problem("unsupported")`
says which operator is in the way. Nothing of the file runs but these functions.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import Signature
from petra_deploy.worker.model import parity, trial
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.model.export import capturing, dynamic_shapes, example_of
from petra_deploy.worker.model.lift import build, segments
from petra_deploy.worker.model.lift.tape import Tape, as_tensors
from petra_deploy.worker.model.lift.values import Unliftable
from petra_deploy.worker.quiet import cause, quiet

SIZES = (1, 3)  # rows at which the module must answer as the file


class Lifted(nn.Module):
    """The graph as a module: tensors in the file's order, a tuple of tensors out."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._modules.update(tape._modules)
        self._parameters.update(tape._parameters)
        self._buffers.update(tape._buffers)
        self.inputs, self.outputs, self.steps = tape.inputs, tape.outputs, tape.steps

    value = Tape.value

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = Tape.forward(self, *tensors)  # type: ignore[arg-type]
        return as_tensors(results if isinstance(results, tuple) else (results,))


def lift(path: Path, signature: Signature, calibration: Samples) -> Adapter:
    """The ONNX file as a module. Raises Problem("unsupported") with the operator that stands in the way."""
    example = example_of(calibration, signature)
    runs = [trial.rows(example, count) for count in trial.BATCHES] if signature.dynamic_batch else [example]
    model = onnx.load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    try:
        if halves := _halves(model.graph):
            raise Unliftable(f"its weights are {halves}")
        if reason := build.unknown(model.graph):
            raise Unliftable(reason)
        with torch.no_grad(), quiet():
            rigid = all(isinstance(size, int) for spec in signature.inputs for size in spec.shape[1:])
            module = Lifted(segments.fold(build.build(model, runs, rigid=rigid)))
    except Unliftable as reason:
        raise Problem("unsupported", str(reason)) from None
    except Exception as error:  # a graph that is valid, but like none seen so far
        raise Problem("unsupported", f"the graph cannot be read as layers ({cause(error)})") from error
    return Adapter(module, [spec.name for spec in signature.inputs]).eval()


def check(module: Adapter, path: Path, signature: Signature, calibration: Samples) -> None:
    """Raises Problem where the module does not answer as the file does, or torch.export does not take it."""
    batches = parity.probes(calibration, signature, SIZES)
    try:
        found = parity.run_module(module, signature, batches)
    except Problem:
        raise
    except Exception as error:
        raise Problem("unsupported", f"it fails on other rows ({cause(error)})") from error
    parity.compare(parity.run_file(path, batches), found, signature, parity.EXACT)
    example = example_of(calibration, signature)
    try:
        with quiet(), capturing():
            torch.export.export(module, example, dynamic_shapes=dynamic_shapes(module, signature), strict=False)
    except Exception as error:
        raise Problem("unsupported", f"torch.export does not take it ({cause(error)})") from error


def _halves(graph: onnx.GraphProto) -> str:
    kinds = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
    return next((kinds[tensor.data_type] for tensor in graph.initializer if tensor.data_type in kinds), "")


__all__: Sequence[str] = ["Lifted", "check", "lift"]
