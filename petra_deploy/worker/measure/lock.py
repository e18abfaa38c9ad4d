"""One measurement at a time on a device, across all processes of this user.

    with exclusive(store.root, "cpu", log): ...

An flock on a file that stays: the kernel lets go when its holder dies, so nothing is ever stolen
by age and nothing has to be cleaned up.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PAUSE = 0.05  # seconds between tries: a wait that signals can end


@contextlib.contextmanager
def exclusive(root: Path, device: str, log: Callable[[str], None]) -> Iterator[None]:
    """Wait for the device, hold it, let go. The caller's time limit bounds the wait."""
    folder = root / "locks"
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder / f"{device}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    log(f"another measurement holds the device {device}: waiting")
                    said = True
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)
