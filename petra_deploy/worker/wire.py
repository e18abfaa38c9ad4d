"""Messages over a pipe between two processes: JSON behind its length, arrays behind a message that names them.

    send(handle, {"run": 10})               message = receive(handle)           # None: the other side has closed
    send_arrays(handle, rows)               rows = receive_arrays(handle)

The length is four bytes, little-endian. Who holds the pipe is trusted; what a job prints goes elsewhere, so a
model that prints cannot forge a message.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = Sequence[Mapping[str, "NDArray[Any]"]]


def send(handle: int, message: Any) -> None:
    body = json.dumps(message, allow_nan=False).encode()
    _write(handle, struct.pack("<I", len(body)) + body)


def receive(handle: int) -> Any:
    """The next message, or None when the other side has closed."""
    head = _read(handle, 4)
    if head is None:
        return None
    body = _read(handle, struct.unpack("<I", head)[0])
    return None if body is None else json.loads(body)


def send_arrays(handle: int, rows: Rows) -> None:
    """Numbers and booleans only, as they lie in memory."""
    send(handle, [[(name, str(a.dtype), list(a.shape)) for name, a in row.items()] for row in rows])
    for row in rows:
        for array in row.values():
            _write(handle, array.tobytes())


def receive_arrays(handle: int) -> "list[dict[str, NDArray[Any]]] | None":
    """None when the other side has closed."""
    import numpy as np

    head = receive(handle)
    if head is None:
        return None
    rows: list[dict[str, NDArray[Any]]] = []
    for row in head:
        rows.append({})
        for name, dtype, shape in row:
            size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
            if (data := _read(handle, size)) is None:
                return None
            rows[-1][name] = np.frombuffer(data, dtype).reshape(shape).copy()
    return rows


def _read(handle: int, size: int) -> bytearray | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(handle, min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return parts


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
