"""`--input name:float32[1,3,224,224]`: what an input looks like, where data does not say it.

    parse("ids:int64[batch,seq]")   # InputSpec("ids", "int64", ("batch", "seq"))
    parse("[1,3,32,32]")            # the only input, float32

The first dimension is always the rows, whatever is written there; a name in place of a number
makes that dimension dynamic.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.workload.table import Array

_PATTERN = re.compile(r"^(?:(?P<name>[^:\[\]]+?)\s*(?::\s*(?P<dtype>\w+))?)?\s*(?:\[(?P<shape>[^\]]*)\])?$")
_DTYPES = {
    "float": "float32", "float32": "float32", "f32": "float32", "float64": "float64", "double": "float64",
    "float16": "float16", "half": "float16", "int": "int64", "int64": "int64", "long": "int64", "i64": "int64",
    "int32": "int32", "i32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8", "bool": "bool",
}  # fmt: skip
_EXAMPLE = "write it like --input image:float32[1,3,224,224] or --input ids:int64[batch,seq]"
FREE = 32  # the size taken for a dynamic dimension when nothing tells one
_MOST_VOCABULARY = 1 << 20

Run = Callable[[dict[str, Array]], list[tuple[str, Array]]]  # feeds -> outputs by name; raises on failure


@dataclass(frozen=True)
class InputSpec:
    name: str | None
    dtype: str | None
    shape: tuple[int | str, ...] | None  # with the rows in front


def parse(text: str) -> InputSpec:
    match = _PATTERN.match(text.strip())
    if match is None or not text.strip():
        raise Problem("input", f"--input {text} cannot be read", _EXAMPLE)
    dtype = match["dtype"]
    if dtype is not None and dtype not in _DTYPES:
        raise Problem(
            "input", f"--input {text}: there is no type {dtype}", f"one of: {', '.join(sorted(set(_DTYPES.values())))}"
        )
    shape: tuple[int | str, ...] | None = None
    if match["shape"] is not None:
        parts = [part.strip() for part in match["shape"].split(",") if part.strip()]
        shape = tuple(int(part) if part.isdigit() else part for part in parts)
        if not shape or any(n == 0 or (isinstance(n, str) and not n.isidentifier()) for n in shape):
            raise Problem("input", f"--input {text}: the shape cannot be read", _EXAMPLE)
    return InputSpec(match["name"], _DTYPES[dtype] if dtype else None, shape)


def parse_all(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    specs = tuple(parse(text) for text in texts)
    names = [spec.name for spec in specs if spec.name]
    if len(set(names)) != len(names):
        raise Problem("input", "--input names the same input twice", "give each input once")
    return specs


def random_rows(specs: Sequence[TensorSpec], rows: int, seed: int, highest: dict[str, int]) -> dict[str, Array]:
    """Random inputs: normal floats, whole numbers below `highest`, masks of ones."""
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for spec in specs:
        shape = (rows, *(FREE if isinstance(n, str) else n for n in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        if "mask" in spec.name.lower() and dtype.kind in "biu":
            made[spec.name] = np.ones(shape, dtype)
        elif dtype.kind == "f":
            made[spec.name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            made[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            made[spec.name] = generator.integers(0, highest.get(spec.name, 2), shape).astype(dtype)
    return made


def find_ranges(specs: Sequence[TensorSpec], run: Run) -> dict[str, int]:
    """For each whole-number input, how many values the model takes from 0 up: its vocabulary.

    Found by trying. An input that takes any number at all is no index; then only 0 and 1 are used.
    """
    highest: dict[str, int] = {}
    for spec in specs:
        if np.dtype(spec.dtype).kind not in "iu" or "mask" in spec.name.lower():
            continue

        def takes(value: int, spec: TensorSpec = spec) -> bool:
            if value > np.iinfo(np.dtype(spec.dtype)).max:
                return False
            feeds = random_rows(specs, 2, 0, {})
            feeds[spec.name] = np.full_like(feeds[spec.name], value)
            try:
                run(feeds)
            except Exception:  # whatever the model says of an index outside
                return False
            return True

        if takes(_MOST_VOCABULARY) or not takes(1):
            continue
        low, high = 1, 2
        while high < _MOST_VOCABULARY and takes(high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if takes(middle) else (low, middle)
        highest[spec.name] = low + 1
    return highest
