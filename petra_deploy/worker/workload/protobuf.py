"""Recognise an ONNX file by its outermost fields, without parsing what is inside them.

The wire format: each field is a varint (number << 3 | type) and a value; onnx.proto says which
numbers a ModelProto has. A file counts when every field is one of those, field 7 (the graph) is
there, and the last field ends where the file does.
"""

from pathlib import Path
from typing import IO, Literal

_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}  # number -> wire type


def looks_like_onnx(path: Path, size: int) -> Literal["whole", "truncated", "no"]:
    seen: set[int] = set()
    with open(path, "rb") as file:
        while file.tell() < size:
            tag = _varint(file)
            if tag is None or _FIELDS.get(tag >> 3) != tag & 7:
                return "truncated" if {1, 7} <= seen else "no"
            value = _varint(file)
            if value is None:
                return "truncated" if 1 in seen else "no"
            if tag & 7 == 2:
                if file.tell() + value > size:
                    return "truncated" if 1 in seen else "no"
                file.seek(value, 1)
            seen.add(tag >> 3)
    if 7 in seen and (1 in seen or 8 in seen):
        return "whole"
    return "truncated" if 1 in seen and len(seen) > 1 else "no"


def _varint(file: IO[bytes]) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
