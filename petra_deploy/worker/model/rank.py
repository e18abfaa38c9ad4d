"""How many singular values a layer keeps: four definitions, each by the share `given_up` (0 to below 1).

    kept(values, "energy", 0.1)         # the fewest whose squares hold nine tenths of the sum of all squares

`values` are singular values, largest first; for "explained_variance" they are the standard deviations of a
layer's outputs along their principal axes, whose squares are variances.

| rule                 | the rank r                                                                          |
|----------------------|-------------------------------------------------------------------------------------|
| "ratio"              | the share of the full rank that is left, rounded up                                 |
| "energy"             | the least r with s_1^2 + ... + s_r^2 >= (1 - given_up) * (s_1^2 + ... + s_n^2)      |
| "explained_variance" | the same sum, over variances of the layer's outputs on calibration rows             |
| "quantile"           | as many as there are values at or above the quantile `given_up` of all values       |

Explained variance is of what the layer answers to real rows, not of its matrix: Zhang and others, "Accelerating
very deep convolutional networks" (arXiv 1505.06798), section 3.1.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["ratio", "energy", "explained_variance", "quantile"]
RULES: tuple[Rule, ...] = ("ratio", "energy", "explained_variance", "quantile")
_ROUNDING = 1e-12  # of float64 sums: the full sum counts as reached


def kept(values: Tensor, rule: Rule, given_up: float) -> int:
    """From 1 to len(values); `values` are (n,), descending, none negative."""
    count = len(values)
    if rule == "ratio":
        rank = math.ceil(round((1 - given_up) * count, 9))
    elif rule == "quantile":
        rank = int((values >= torch.quantile(values.double(), given_up)).sum())
    else:
        sums = values.double().square().cumsum(0)
        wanted = (1 - given_up - _ROUNDING) * sums[-1]
        rank = int((sums < wanted).sum()) + 1
    return min(max(rank, 1), count)


def rounded(rank: int, step: int, most: int) -> int:
    """The next multiple of `step`, no more than `most`."""
    return min(-(-rank // step) * step, most)
