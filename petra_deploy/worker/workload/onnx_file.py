"""Open an ONNX model: checked, with its external data inside, its rows dynamic where they can be.

    notes = take(path, folder / "model.onnx")
    signature, more = settle(folder / "model.onnx", example)

Later jobs see only the file written here. Nothing of a model's runs but ONNX operators in ONNX
Runtime; operators of other domains would need a library of their own and are refused.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import BATCH, Signature, TensorSpec
from petra_deploy.worker.workload import external_data
from petra_deploy.worker.workload.fit import fitted
from petra_deploy.worker.workload.inputs import InputSpec, Run, random_rows
from petra_deploy.worker.workload.outputs import observe
from petra_deploy.worker.workload.sniff import regular_size
from petra_deploy.worker.workload.table import Array, Table
from petra_deploy.worker.workload.words import one_line

_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
_MOST = (2 << 30) - 1


def take(path: Path, out: Path) -> tuple[str, ...]:
    """Write a checked, self-contained copy of the model at `path` to `out`. Raises Problem."""
    if regular_size(path, "the model file") > _MOST:
        raise Problem("unsupported", f"{path.name} is over 2 GiB", "models up to 2 GiB can be optimized")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf has several kinds
        raise Problem("input", f"{path.name} is damaged: {one_line(error)}", "export or download it again") from None
    _check_domains(model, path.name)
    external_data.inline(model, path.parent)
    if any(not value.type.tensor_type.HasField("shape") for value in model.graph.output):
        model = onnx.shape_inference.infer_shapes(model)  # the checker asks for ranks that some exporters leave out
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise Problem("input", f"{path.name} is not a valid ONNX model: {one_line(error)}", "export it again") from None
    name_dimensions(model)
    del model.graph.value_info[:]
    if model.ByteSize() > _MOST:
        raise Problem("unsupported", f"{path.name} is over 2 GiB with its data", "models up to 2 GiB can be optimized")
    onnx.save_model(model, out)
    return ()


def name_dimensions(model: onnx.ModelProto) -> None:
    """Call the first dimension of every input BATCH where it is dynamic, and name unnamed ones."""
    constants = {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for value in model.graph.input:
        if value.name in constants or not value.type.HasField("tensor_type"):
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                continue
            if axis == 0:
                if dimension.dim_param:
                    renamed[dimension.dim_param] = BATCH
                dimension.dim_param = BATCH
            elif not dimension.dim_param:
                dimension.dim_param = f"{value.name}_{axis}"
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]


def input_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The inputs that a caller feeds. Raises Problem("unsupported") for sequences and the like."""
    model = onnx.load_model(path, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise Problem(
                "unsupported", f"the input {value.name} is not a tensor of known rank", "export it with tensor inputs"
            )
        kind = value.type.tensor_type
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except (KeyError, TypeError):
            dtype = np.dtype(object)
        if dtype.kind not in "biuf":
            raise Problem(
                "unsupported",
                f"the input {value.name} does not take plain numbers",
                "export the model without its text part",
            )
        shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
        if not shape:
            raise Problem("unsupported", f"the input {value.name} is a single number, not rows", "make it a constant")
        found.append(TensorSpec(name=value.name, dtype=str(dtype), shape=shape))
    if not found:
        raise Problem("input", "the model has no inputs", "export a model that takes its inputs as tensors")
    return tuple(found)


def output_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The outputs as the file says them; a dimension that it leaves open is "?"."""
    model = onnx.load_model(path, load_external_data=False)
    found = []
    for value in model.graph.output:
        kind = value.type.tensor_type
        try:
            dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
        except (KeyError, TypeError):
            raise Problem(
                "unsupported", f"the output {value.name} is not a tensor of numbers", "export it with tensor outputs"
            ) from None
        shape = tuple(d.dim_param or d.dim_value or "?" for d in kind.shape.dim)
        found.append(TensorSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(found)


def settle(path: Path, example: Table | None, specs: Sequence[InputSpec]) -> tuple[Signature, tuple[str, ...]]:
    """The signature of a model written by `take`, its outputs found by running it on `example`."""
    inputs = narrowed(input_specs(path), specs)
    run = runner(path)
    if all(isinstance(spec.shape[0], str) for spec in inputs):
        return observe(inputs, run, lambda rows: feeds(inputs, example, rows))
    rows = next(n for spec in inputs if isinstance(n := spec.shape[0], int))
    try:
        outputs = run(feeds(inputs, example, rows))
    except Exception as error:
        raise Problem("input", f"the model raised {one_line(error)}", "check that it runs in ONNX Runtime") from error
    found = tuple(TensorSpec(name=name, dtype=str(value.dtype), shape=value.shape) for name, value in outputs)
    return Signature(inputs=inputs, outputs=found), (
        f"the model takes exactly {rows} rows at a time, as it was exported",
    )


def runner(path: Path) -> Run:
    """Run the model in ONNX Runtime, one thread. Raises Problem where it cannot be opened."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen kinds
        raise Problem(
            "input", f"ONNX Runtime cannot open the model: {one_line(error)}", "export it again, with a newer opset"
        ) from None
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Array]) -> list[tuple[str, Array]]:
        outputs = session.run(names, given)
        if any(not isinstance(value, np.ndarray) for value in outputs):
            raise Problem(
                "unsupported", "an output of the model is not a tensor", "export it with tensor outputs (zipmap=False)"
            )
        return list(zip(names, outputs, strict=True))

    return run


def feeds(inputs: Sequence[TensorSpec], example: Table | None, rows: int) -> dict[str, Array]:
    """The first rows of the data, repeated where there are fewer; or made up."""
    if example is None:
        return random_rows(inputs, rows, 0, {})
    part = np.resize(np.arange(min(len(example), rows)), rows)
    return fitted(example.take(part), inputs)[0].inputs


def narrowed(inputs: tuple[TensorSpec, ...], specs: Sequence[InputSpec]) -> tuple[TensorSpec, ...]:
    """The signature is the model's own; `--input` may only settle what it leaves dynamic."""
    said = {spec.name or inputs[min(i, len(inputs) - 1)].name: spec for i, spec in enumerate(specs)}
    if unknown := [name for name in said if name not in {spec.name for spec in inputs}]:
        raise Problem(
            "input",
            f"--input names {unknown[0]!r}; the model takes {', '.join(s.name for s in inputs)}",
            "use its names",
        )
    found = []
    for spec in inputs:
        shape = said[spec.name].shape if spec.name in said else None
        if shape is None:
            found.append(spec)
            continue
        fits = len(shape) == len(spec.shape) and all(
            isinstance(w, str) or isinstance(n, str) or w == n for w, n in zip(spec.shape[1:], shape[1:], strict=True)
        )
        if not fits:
            raise Problem(
                "input", f"--input says {spec.name} is {list(shape)}; the model says {list(spec.shape)}", "correct it"
            )
        rest = tuple(n if isinstance(w, str) else w for w, n in zip(spec.shape[1:], shape[1:], strict=True))
        found.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(spec.shape[0], *rest)))
    return tuple(found)


def _check_domains(model: onnx.ModelProto, name: str) -> None:
    known = _DOMAINS | {function.domain for function in model.functions}
    for node in external_data.nodes(model):
        if node.domain not in known:
            raise Problem(
                "unsupported",
                f"{name} uses the operator {node.domain}.{node.op_type}, which needs a library of its own",
                "export it with standard ONNX operators",
            )
