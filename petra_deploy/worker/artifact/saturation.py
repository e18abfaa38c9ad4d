"""The 8-bit sums of x86 without VNNI: u8 x s8 products are added two by two in 16 bits, and saturate.

    delta, count = shortfall(rows, weight)      # (n, k) uint8, (k, m) int8 -> what the sums lack, (n, m)
    rows.astype(np.int64) @ weight + delta      # what AVX2 and AVX-512 compute; with VNNI, delta is zero

ONNX Runtime's U8S8 kernels for AVX2 and AVX-512 multiply by `vpmaddubsw`: products of neighbours
along the summed axis, (0, 1), (2, 3) and so on, make one int16, cut to -32768..32767, and only those
are added in 32 bits. VNNI, AMX and Arm add all products in 32 bits. U8U8 and S8S8 kernels widen
first and never saturate. A convolution sums kernel positions outside and input channels inside
(channels last). Found by running the kernels (tests/unit/worker/model/test_saturation.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = -32768, 32767
Array = NDArray[Any]


def may_saturate(weight: Array, top: Array | int = 255) -> Array:
    """Which pair sums of `weight`, (k, m) int8, can leave 16 bits: (ceil(k / 2), m) bool.

    `top` bounds the activations: one number, or one for each of the k. Activations are from 0, so
    a sum is largest with all of its positive products at the top and the negative ones at 0.
    """
    worst = _even(weight, 0).astype(np.int64) * _even(np.broadcast_to(top, len(weight)), 0)[:, None].astype(np.int64)
    high = np.maximum(worst, 0)[0::2] + np.maximum(worst, 0)[1::2]
    low = np.minimum(worst, 0)[0::2] + np.minimum(worst, 0)[1::2]
    risky: Array = (high > HIGH) | (low < LOW)
    return risky


def shortfall(rows: Array, weight: Array) -> tuple[Array, int]:
    """What saturation adds to `rows @ weight`: int64 (n, m), and how many of the pair sums were cut.

    `rows` are uint8 (n, k) as they are stored, zero point included; `weight` is int8 (k, m).
    """
    delta = np.zeros((len(rows), weight.shape[1]), np.int64)
    if not rows.size:
        return delta, 0
    risky, count = may_saturate(weight, rows.max(axis=0)), 0
    left, right = _even(rows, 1)[:, 0::2], _even(rows, 1)[:, 1::2]
    even = _even(weight, 0).astype(np.int32)
    for pair in np.flatnonzero(risky.any(axis=1)):
        columns = np.flatnonzero(risky[pair])
        sums = np.outer(left[:, pair].astype(np.int32), even[2 * pair, columns])
        sums += np.outer(right[:, pair].astype(np.int32), even[2 * pair + 1, columns])
        cut = np.clip(sums, LOW, HIGH) - sums
        delta[:, columns] += cut
        count += int(np.count_nonzero(cut))
    return delta, count


def conv_weight(weight: Array, groups: int) -> list[Array]:
    """A convolution's (m, c, *kernel) as one (k, m / groups) a group, k in the order of the kernels' sums."""
    out = len(weight) // groups
    last = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return [last[g * out : (g + 1) * out].T for g in range(groups)]


def conv_rows(
    sample: Array, kernel: tuple[int, ...], groups: int, strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...], fill: int,
) -> tuple[list[Array], tuple[int, ...]]:  # fmt: skip
    """One sample (c, *space) as the rows that a convolution multiplies: a (places, k) a group; and the places' shape.

    `pads` is ONNX's (all starts, then all ends); padding holds `fill`, the zero point.
    """
    rank = len(kernel)
    around = [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(sample, around, constant_values=fill)
    spans = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(1, rank + 1)))
    steps = (slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    windows = windows[steps]
    places = windows.shape[1 : rank + 1]
    width = len(sample) // groups
    rows = []
    for group in range(groups):
        part = np.moveaxis(windows[group * width : (group + 1) * width], 0, -1)
        rows.append(part.reshape(int(np.prod(places)), -1))
    return rows, places


def _even(values: Array, axis: int) -> Array:
    """`values` with a zero after the last along `axis`, where their number is odd: the kernels fill up so."""
    if values.shape[axis] % 2 == 0:
        return values
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, 1)
    return np.pad(values, padding)
