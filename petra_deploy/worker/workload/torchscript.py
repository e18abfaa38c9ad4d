"""Convert TorchScript to ONNX. It is a program: it runs only where the user trusts it.

The converter traces the module once, so loops and branches on values become those of the example.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import Signature
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.workload import batch_axis, external_data, signature
from petra_deploy.worker.workload.inputs import InputSpec
from petra_deploy.worker.workload.onnx_file import input_specs, runner
from petra_deploy.worker.workload.table import Array, Table
from petra_deploy.worker.workload.words import one_line

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
    rows = 2 if called.signature.dynamic_batch else 1
    try:
        _by_tracing(adapter, called.signature, signature.feeds(called.signature.inputs, example, rows), out)
    except Exception as error:  # the older exporter lacks operators that the newer one has
        try:
            feed = partial(signature.feeds, called.signature.inputs, example)
            _by_program(adapter, called.signature, feed, rows, out)
        except Exception:
            said = one_line(error).split("[Caused by")[0]
            raise Problem("unsupported", f"this TorchScript cannot be converted to ONNX: {said}", _HINT) from error
    fixed = next((spec.shape[0] for spec in input_specs(out) if isinstance(spec.shape[0], int)), rows)
    feeds = signature.feeds(called.signature.inputs, example, int(fixed))
    check(signature.runner(adapter)(feeds), runner(out)(feeds), "TorchScript")
    return called.notes


def _by_tracing(adapter: Adapter, found: Signature, feeds: dict[str, Array], out: Path) -> None:
    dynamic = {
        spec.name: {axis: name for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in (*found.inputs, *found.outputs)
    }
    tensors = _tensors(adapter, feeds)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            torch.jit.trace(adapter, tensors, check_trace=False),  # type: ignore[no-untyped-call]
            tensors,
            str(out),
            dynamo=False,
            opset_version=_OPSET,
            input_names=[spec.name for spec in found.inputs],
            output_names=[spec.name for spec in found.outputs],
            dynamic_axes={name: axes for name, axes in dynamic.items() if axes},
        )


def _by_program(
    adapter: Adapter, found: Signature, feeds: Callable[[int], dict[str, Array]], rows: int, out: Path
) -> None:
    """By way of torch.export, which may fix the rows: at 7, an unusual number, they are easiest to free."""
    from torch._export.converter import TS2EPConverter

    for count in (7, 1) if rows > 1 else (1,):
        tensors = _tensors(adapter, feeds(count))
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(adapter, tensors, check_trace=False)  # type: ignore[no-untyped-call]
            program = TS2EPConverter(traced, tensors, {}).convert()
            converted = torch.onnx.export(program, dynamo=True, verbose=False)
        if converted is None:
            raise RuntimeError("the exporter gave nothing")
        model = converted.model_proto
        _rename(model, [spec.name for spec in found.inputs], [spec.name for spec in found.outputs])
        dynamic = all(value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input)
        onnx.save_model(model, out)
        if dynamic or batch_axis.free(out):
            return


def _tensors(adapter: Adapter, feeds: dict[str, Array]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(feeds[name].copy()) for name in adapter.names)


def _rename(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of a flat graph these names, in their order."""
    if len(model.graph.input) != len(inputs) or len(model.graph.output) != len(outputs):
        raise ValueError("the converted model has other inputs or outputs")
    names = {value.name: f"petra::{i}" for i, value in enumerate(model.graph.input)}
    new = {f"petra::{i}": name for i, name in enumerate(inputs)}
    for value, name in zip(model.graph.output, outputs, strict=True):
        names[value.name], new[f"petra::{name}"] = f"petra::{name}", name
    for table in (names, new):
        for node in external_data.nodes(model):
            for field in (node.input, node.output):
                field[:] = [table.get(name, name) for name in field]
        for value in (*model.graph.input, *model.graph.output):
            value.name = table.get(value.name, value.name)
    del model.graph.value_info[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings about themselves out of the log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check(theirs: list[tuple[str, Array]], ours: list[tuple[str, Array]], form: str) -> None:
    """Raises Problem("mismatch") where the converted model computes something else."""
    for (name, a), (_, b) in zip(theirs, ours, strict=True):
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True):
            off = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) if a.shape == b.shape else None
            said = f"differs by {off:.3g}" if off is not None else f"is {list(b.shape)}, not {list(a.shape)}"
            raise Problem("mismatch", f"converting {form} to ONNX changed the model: {name} {said}", _HINT)
