"""Weights in blocks of few bits: grids by Intel Neural Compressor, GPTQ, packing as MatMulNBits reads them.

    rounded = nbits.rounded(weight, bits=4, block=32, rows=None)      # to the nearest; with rows by GPTQ
    rounded.values()                                                  # what the kernel multiplies by, float32
    weights, scales, zeros = nbits.packed(rounded, bits=4)

A weight w of a block becomes q = round(w / scale) + zero in [0, 2^bits - 1], and stands for (q - zero) scale.
GPTQ is written out here (Frantar et al., arXiv 2210.17323, algorithm 1): INC's needs the package accelerate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from petra_deploy.core.extension import Tools
from petra_deploy.worker.quiet import quiet

Array = NDArray[Any]
_BATCH_ROWS = 16


@dataclass(frozen=True)
class Rounded:
    """`steps` (outputs, blocks, block) uint8, `scales` float32 and `zeros` uint8 (outputs, blocks)."""

    steps: Array
    scales: Array
    zeros: Array
    shape: tuple[int, int]  # of the weight: outputs, inputs

    def values(self) -> Array:
        wide = (self.steps.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return wide.reshape(self.shape[0], -1)[:, : self.shape[1]]


def rounded(weight: Array, bits: int, block: int, rows: Array | None = None) -> Rounded:
    """`weight` is (outputs, inputs) float32. `rows` (any, inputs): what the layer is given, for GPTQ."""
    import torch

    with quiet():
        from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    outputs, inputs = weight.shape
    padded = torch.zeros(outputs, -(-inputs // block) * block)
    padded[:, :inputs] = torch.from_numpy(weight.copy())
    factor = None if rows is None else _factor(rows, padded.shape[1])
    steps, scales, zeros = [], [], []
    for start in range(0, padded.shape[1], block):
        part = padded[:, start : start + block]
        step, scale, zero = quant_tensor(part.clone(), bits=bits, group_size=block, scheme="asym", return_int=True)
        if factor is not None:
            step = _compensated(padded, start, block, scale, zero, factor, 2**bits - 1)
        steps.append(step)
        scales.append(scale)
        zeros.append(zero)
    return Rounded(
        torch.stack(steps, 1).numpy().astype(np.uint8), torch.cat(scales, 1).numpy().astype(np.float32),
        torch.cat(zeros, 1).numpy().astype(np.uint8), (outputs, inputs),
    )  # fmt: skip


def _factor(rows: Array, inputs: int) -> Any:
    """The upper Cholesky factor of the inverse of X'X, damped by a hundredth of its mean diagonal."""
    import torch

    given = torch.zeros(len(rows), inputs, dtype=torch.float64)
    given[:, : rows.shape[1]] = torch.from_numpy(rows)
    gram = given.T @ given
    diagonal = gram.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += 0.01 * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return torch.linalg.cholesky(inverse, upper=True)


def _compensated(weight: Any, start: int, block: int, scale: Any, zero: Any, factor: Any, top: int) -> Any:
    """The steps of one block, a column at a time; `weight`, changed in place, takes each error further on."""
    import torch

    steps = []
    for column in range(start, start + block):
        exact = weight[:, column]
        step = ((exact / scale[:, 0]).round() + zero[:, 0]).clamp(0, top)
        error = (exact - (step - zero[:, 0]) * scale[:, 0]).double() / factor[column, column]
        weight[:, column + 1 :] -= torch.outer(error, factor[column, column + 1 :]).to(weight.dtype)
        steps.append(step)
    return torch.stack(steps, 1)


def packed(rounded: Rounded, bits: int) -> tuple[Array, Array, Array]:
    """The weights (outputs, blocks, bytes), scales (outputs * blocks,) and zero points (outputs * bytes,) as inputs."""
    scales = np.ascontiguousarray(rounded.scales.reshape(-1))
    if bits == 8:
        return rounded.steps, scales, np.ascontiguousarray(rounded.zeros.reshape(-1))
    zeros = rounded.zeros if rounded.zeros.shape[1] % 2 == 0 else np.pad(rounded.zeros, ((0, 0), (0, 1)))
    return _nibbles(rounded.steps), scales, np.ascontiguousarray(_nibbles(zeros).reshape(-1))


def _nibbles(values: Array) -> Array:
    """Two neighbours a byte, the first in the low half."""
    return np.ascontiguousarray(values[..., 0::2] | (values[..., 1::2] << 4))


def inputs_of(model: ir.Model, values: Sequence[ir.Value | None], tools: Tools, rows: int) -> dict[str, Array]:
    """{name: (positions, inputs)} of these values over calibration rows, by ONNX Runtime."""
    import onnx
    import onnxruntime

    proto = ir.to_proto(model)
    names = list(dict.fromkeys(value.name for value in values if value is not None and value.name))
    doors = {value.name for value in proto.graph.input}
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in doors
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    made = [name for name in names if name not in doors]
    session = None
    if made:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = tools.signature.fixed_batch or _BATCH_ROWS
    found: dict[str, list[Array]] = {name: [] for name in names}
    for feeds, _ in tools.calibration.first(rows).batches(size):
        given = {spec.name: feeds[spec.name] for spec in tools.signature.inputs}
        if len(next(iter(given.values()))) < size and not tools.signature.dynamic_batch:
            continue
        results = dict(zip(made, session.run(made, given), strict=True)) if session else {}
        for name in names:
            array = results.get(name, given.get(name))
            if array is not None:
                found[name].append(array.reshape(-1, array.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}
