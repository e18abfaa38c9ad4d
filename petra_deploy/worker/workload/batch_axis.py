"""Make the rows of an ONNX model dynamic that was exported for a fixed number of them.

Most models exported without `dynamic_axes` compute each row by itself all the same. The fixed
number stands in the inputs' shapes, and in the targets of Reshape; both are changed, and the
change is kept only if the new model gives, for one row more, the same rows as the old one.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from petra_deploy.core.workload import BATCH
from petra_deploy.worker.workload.inputs import random_rows
from petra_deploy.worker.workload.onnx_file import input_specs, runner
from petra_deploy.worker.workload.table import Array


def free(path: Path) -> tuple[str, ...]:
    """Rewrite the model at `path` where that holds, and say so; else leave it as it is."""
    inputs = input_specs(path)
    sizes = {spec.shape[0] for spec in inputs}
    if len(sizes) != 1 or not isinstance(rows := sizes.pop(), int):
        return ()
    given = random_rows(inputs, rows + 1, 0, {})
    try:
        before = runner(path)({name: values[:rows] for name, values in given.items()})
    except Exception:  # what it says is told where the signature is settled
        return ()
    for reshapes in (False, True):
        candidate = path.with_name("candidate.onnx")
        onnx.save_model(_freed(onnx.load_model(path), rows, reshapes), candidate)
        try:
            if _same(before, runner(candidate)(given), rows):
                candidate.replace(path)
                return (f"the model was exported for exactly {rows} rows; it was changed to take any number",)
        except Exception:  # ONNX Runtime's own shape errors: then the rows are truly fixed
            continue
        finally:
            candidate.unlink(missing_ok=True)
    return ()


def _freed(model: onnx.ModelProto, rows: int, reshapes: bool) -> onnx.ModelProto:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in constants and dimensions and dimensions[0].dim_value == rows:
            dimensions[0].dim_param = BATCH
    del model.graph.value_info[:]
    if reshapes:
        made = {output: node for node in model.graph.node if node.op_type == "Constant" for output in node.output}
        _without_zero_states(model, constants)
        for node in model.graph.node:
            if node.op_type != "Reshape":
                continue
            name = node.input[1]
            tensor = (
                constants.get(name) or next((a.t for a in made[name].attribute if a.name == "value"), None)
                if (name in constants or name in made)
                else None
            )
            if tensor is None:
                continue
            target = numpy_helper.to_array(tensor).copy()
            if target.ndim == 1 and (place := _rows_in(target, rows)) is not None:
                target[place] = 0 if -1 in target else -1  # 0: as the input's own
                tensor.CopyFrom(numpy_helper.from_array(target, tensor.name))
    return model


def _rows_in(target: Array, rows: int) -> int | None:
    """Which number in the target of a Reshape stands for the rows, or a multiple of them (heads, steps)."""
    if len(target) and target[0] == rows:
        return 0
    multiples = [i for i, n in enumerate(target.tolist()) if n == rows or (rows > 1 and n > 0 and n % rows == 0)]
    return multiples[0] if len(multiples) == 1 and -1 not in target else None


def _without_zero_states(model: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Leave out initial states that are zero anyway: their shape has the rows in it."""
    for node in model.graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN"):
            for place in range(5, min(7, len(node.input))):
                tensor = constants.get(node.input[place])
                if tensor is not None and not numpy_helper.to_array(tensor).any():
                    node.input[place] = ""


def _same(before: list[tuple[str, Array]], after: list[tuple[str, Array]], rows: int) -> bool:
    """Whether each output has one row more, and the others as they were; the first one in dimension 0."""
    for index, ((_, a), (_, b)) in enumerate(zip(before, after, strict=True)):
        if a.ndim == 0 or a.ndim != b.ndim:
            return False
        grown = [axis for axis, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)) if x != y]
        if len(grown) != 1 or (index == 0 and grown != [0]) or b.shape[grown[0]] != rows + 1:
            return False
        part = np.take(b, np.arange(rows), axis=grown[0])
        if part.shape != a.shape or not np.allclose(a, part, rtol=1e-3, atol=1e-4, equal_nan=True):
            return False
    return True
