"""Convert TorchScript to ONNX. It is a program: it runs only where the user trusts it.

The converter traces the module once, so loops and branches on values become those of the example.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.workload import signature
from petra_deploy.worker.workload.factory import one_line
from petra_deploy.worker.workload.inputs import InputSpec
from petra_deploy.worker.workload.onnx_file import runner
from petra_deploy.worker.workload.table import Array, Table

_OPSET = 17
_HINT = "export the original module with torch.onnx.export, or give its state_dict with --model file.py:function"


def open_trusted(path: Path) -> torch.nn.Module:
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call,no-any-return]
    except Exception as error:  # whatever its own code raises
        raise Problem(
            "input", f"opening {path.name} raised {one_line(error)}", "save it again with torch.jit.save"
        ) from error


def convert(module: torch.nn.Module, example: Table | None, specs: Sequence[InputSpec], out: Path) -> tuple[str, ...]:
    """Write the module as ONNX to `out`, compared with it on the example. Raises Problem."""
    called = signature.settle(module, example, specs)
    adapter = Adapter(module, called.names, called.call).eval()
    inputs = called.signature.inputs
    feeds = (
        signature.feeds(inputs, example, 2) if called.signature.dynamic_batch else signature.feeds(inputs, example, 1)
    )
    dynamic = {
        spec.name: {axis: name for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in (*inputs, *called.signature.outputs)
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            tensors = tuple(torch.from_numpy(feeds[name].copy()) for name in called.names)
            traced = torch.jit.trace(adapter, tensors, check_trace=False)  # type: ignore[no-untyped-call]
            torch.onnx.export(
                traced,
                tensors,
                str(out),
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(called.names),
                output_names=[spec.name for spec in called.signature.outputs],
                dynamic_axes={name: axes for name, axes in dynamic.items() if axes},
            )
    except Exception as error:
        raise Problem(
            "unsupported", f"this TorchScript cannot be converted to ONNX: {one_line(error)}", _HINT
        ) from error
    check(signature.runner(adapter)(feeds), runner(out)(feeds), "TorchScript")
    return called.notes


def check(theirs: list[tuple[str, Array]], ours: list[tuple[str, Array]], form: str) -> None:
    """Raises Problem("mismatch") where the converted model computes something else."""
    for (name, a), (_, b) in zip(theirs, ours, strict=True):
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True):
            off = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) if a.shape == b.shape else None
            said = f"differs by {off:.3g}" if off is not None else f"is {list(b.shape)}, not {list(a.shape)}"
            raise Problem("mismatch", f"converting {form} to ONNX changed the model: {name} {said}", _HINT)
