"""Whether a graph has weights of which two in every four are zero: what sparse Tensor Cores skip.

two_of_four(path)      # True for a graph of sparsify's pattern "2:4", in FP32, FP16 or int8
"""

from pathlib import Path

import numpy as np

_LEAST = 64  # entries of a weight worth looking at


def two_of_four(path: Path) -> bool:
    """Looks at matrices and kernels along their first two dimensions: which are the inputs depends on the operator."""
    import onnx  # here, so that a process which only serves does not carry it

    model = onnx.load(str(path))
    return any(
        tensor.dims[axis] % 4 == 0 and _sparse(np.asarray(onnx.numpy_helper.to_array(tensor)), axis)
        for tensor in model.graph.initializer
        if len(tensor.dims) > 1 and np.prod(tensor.dims) >= _LEAST
        for axis in (0, 1)
    )


def _sparse(weight: np.ndarray, axis: int) -> bool:
    groups = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    kept = (groups != 0).sum(1)
    return bool((kept <= 2).all() and kept.any())  # an initial state is all zeros, and no weight
