"""What the backends of ONNX files check of an engine: its doors are the signature's, and it runs.

check(graph.signature, runner.inputs, runner.outputs)
tried(runner.run, graph.signature, runner.inputs)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import Signature, TensorSpec

Arrays = Mapping[str, NDArray[Any]]


def example(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """Zeros for whole numbers (valid as an index), else ones; `batch` for the symbolic dimensions."""
    shape = tuple(batch if isinstance(size, str) else size for size in spec.shape)
    return (
        np.zeros(shape, spec.dtype) if np.issubdtype(np.dtype(spec.dtype), np.integer) else np.ones(shape, spec.dtype)
    )


def check(signature: Signature, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raises Problem "mismatch"; inputs of the signature that the graph does not use may be missing."""
    for what, has, wants in (("inputs", inputs, signature.inputs), ("outputs", outputs, signature.outputs)):
        names = tuple(spec.name for spec in wants)
        if tuple(has) != names and (what == "outputs" or not set(has) <= set(names)):
            raise Problem("mismatch", f"the graph's {what} are {', '.join(has)}, not {', '.join(names)}")


def tried(run: Callable[[Arrays], object], signature: Signature, inputs: Sequence[str]) -> None:
    """Run at one row, and at two where the batch is dynamic.

    A model with further dynamic dimensions is left to the data: no size suits every one of them.
    """
    for batch in (1, 2) if signature.dynamic_batch else (1,):
        if feeds := examples(signature, batch):
            run({name: values for name, values in feeds.items() if name in inputs})


def examples(signature: Signature, batch: int) -> dict[str, NDArray[Any]]:
    """Feeds of that many rows; none where further dimensions are dynamic."""
    if any(isinstance(size, str) for spec in signature.inputs for size in spec.shape[1:]):
        return {}
    return {spec.name: example(spec, batch) for spec in signature.inputs}
