"""What the two ends of a remote run say to each other: JSON with a four-byte length before it, files after it.

    channel = Channel(source, sink)                      # two file descriptors
    send_folder(channel, {"do": "put", "key": key}, store.path(key))
    reply = channel.receive(time.monotonic() + 60)

A message with `files` ([name, bytes] each) is followed by their bytes, in that order and nothing between.
Whoever waits does so until a deadline by the monotonic clock: a silent line is `Lost`, never a hang.
"""

import contextlib
import json
import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

PATIENCE = 60.0  # seconds without a byte (or without room for one) after which the other side is given up
PING = 15.0  # seconds between the signs of life that the driver gives
_MOST_JSON = 64 << 20  # bytes of one message
_MOST_BYTES = 64 << 30  # of the files of one message
_PART = 1 << 18


class Lost(Exception):
    """The other side is gone, silent, or makes no sense."""


class Late(Exception):
    """The other side is there, but its answer is overdue."""


class Channel:
    """A pair of descriptors. Several threads may send; one receives."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._closed = False
        os.set_blocking(sink, False)

    def send(self, message: dict[str, Any], parts: Iterable[bytes] = ()) -> None:
        """Raises Lost where the other side takes nothing any more."""
        body = json.dumps(message, allow_nan=False).encode()
        with self._sending:
            if self._closed:
                raise Lost("the connection is closed")
            self.write(struct.pack("<I", len(body)) + body)
            for part in parts:
                self.write(part)

    def close(self) -> None:
        """No message is sent from here on, so that the descriptors can be closed."""
        with self._sending:
            self._closed = True

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next message. Raises Lost at the end of the line, Late at the deadline."""
        size = struct.unpack("<I", self.read(4, deadline))[0]
        if size > _MOST_JSON:
            raise Lost("what arrived is no message of ours")
        try:
            message = json.loads(self.read(size, time.monotonic() + PATIENCE))
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Lost("what arrived is no message of ours")
        return message

    def read(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._more(deadline)
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def line(self, mark: bytes, deadline: float, most: int = 1 << 20) -> bytes:
        """The rest of the line that begins with `mark`; what a login shell prints before it is passed over."""
        while (start := self._buffer.find(mark)) < 0 or (end := self._buffer.find(b"\n", start)) < 0:
            if len(self._buffer) > most:
                raise Lost("the login prints without end")
            self._more(deadline)
        taken = bytes(self._buffer[start + len(mark) : end])
        del self._buffer[: end + 1]
        return taken

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.sink, left) :]
            except BlockingIOError:
                if not select.select([], [self.sink], [], PATIENCE)[1]:
                    raise Lost(f"nothing was taken for {PATIENCE:.0f} s") from None
            except OSError as error:
                raise Lost(f"the connection is closed ({error.strerror})") from None

    def _more(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.source], [], [], left)[0]:
            raise Late("no answer in time")
        try:
            part = os.read(self.source, _PART)
        except BlockingIOError:
            return
        except OSError as error:
            raise Lost(f"the connection is closed ({error.strerror})") from None
        if not part:
            raise Lost("the connection was closed")
        self._buffer += part


def send_folder(channel: Channel, message: dict[str, Any], folder: Path) -> None:
    """`message`, and all files of `folder` behind it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in paths]
    channel.send({**message, "files": files}, _parts(paths))


def receive_folder(channel: Channel, files: Any, folder: Path) -> None:
    """The files that a message announced, into the empty `folder`.

    Raises Lost for names that lead out of it; OSError (after all bytes are read) where one cannot be written.
    """
    trouble: OSError | None = None
    for inside, size in _announced(files):
        with contextlib.ExitStack() as stack:
            file = None
            try:
                if trouble is None:
                    (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(open(folder / inside, "wb"))
            except OSError as error:
                trouble = error
            left = size
            while left > 0:
                part = channel.read(min(left, _PART), time.monotonic() + PATIENCE)
                left -= len(part)
                try:
                    if file is not None:
                        file.write(part)
                except OSError as error:
                    trouble, file = error, None
    if trouble is not None:
        raise trouble


def _announced(files: Any) -> list[tuple[PurePosixPath, int]]:
    """What a message says of its files, checked before anything is made of it."""
    try:
        found = [(PurePosixPath(name), int(size)) for name, size in files]
    except (TypeError, ValueError):
        raise Lost("what arrived is no message of ours") from None
    for path, size in found:
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(path) or size < 0:
            raise Lost(f"a file called {str(path)!r} was sent")
    if sum(size for _, size in found) > _MOST_BYTES:
        raise Lost(f"more than {_MOST_BYTES >> 30} GiB were sent at once")
    return found


def _parts(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(_PART):
                yield part
