"""Peak memory of a process that serves one engine and nothing else, and how long it takes to start.

    peak_memory("onnxruntime", folder, settings, feeds, scratch)        # a Figure in bytes
    cold_starts("onnxruntime", folder, settings, feeds, scratch, times=5)       # a record each

A child of its own opens the engine, runs a few calls and tells its high-water mark (VmHWM): Python,
numpy and the runtime are in it, as they are in the smallest server; the other engine is not.

    python -P -m petra_deploy.worker.measure.memory REQUEST.json

In a jail where no program can be started the child is a fork, so ask before any engine is open;
what the worker itself holds (some 30 MB) is then in the figure, whose note says so. For a GPU no child
will do, since in the jail CUDA starts in the worker alone: there the worker serves, once, before anything else.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.outcome import Figure

Feeds = Sequence[Mapping[str, NDArray[Any]]]
CALLS = 5
PATIENCE = 300.0  # seconds
_MARK = "petra-served "
Record = dict[str, Any]


def peak_memory(
    backend: str, folder: Path, settings: Mapping[str, object], feeds: Feeds, scratch: Path, *, device: str = "cpu"
) -> Figure:
    """`feeds` are served in turn; `scratch` is an empty folder. Raises Problem when serving fails.

    Of the host's memory; what a GPU holds is not in it.
    """
    served = _served(_write_request(backend, folder, settings, feeds, scratch), device)
    return Figure(value=float(served["peak_bytes"]), unit="bytes", n=1, note=served["note"])


def cold_starts(
    backend: str, folder: Path, settings: Mapping[str, object], feeds: Feeds, scratch: Path, *, times: int,
    device: str = "cpu",
) -> list[Record]:  # fmt: skip
    """New processes, one after the other, from their start to their first answer; all files in the page cache.

    {"total_ns", "import_ns", "open_ns", "first_ns", "peak_bytes", "note"} each; the first of all, which brings the
    files into the cache, is left out. On a GPU there is one, of the worker. Raises Problem when serving fails.
    """
    request = _write_request(backend, folder, settings, feeds, scratch)
    if device != "cpu":
        return [_served(request, device)]
    return [_served(request, device) for _ in range(times + 1)][1:]


def serve(request: Path, began_ns: int) -> Record:
    """Open the engine and run it; `began_ns` of the monotonic clock is when this process was started."""
    wanted = json.loads(request.read_text())
    feeds = [
        {name: np.load(request.parent / f"{call}-{index}.npy", allow_pickle=False) for index, name in enumerate(names)}
        for call, names in enumerate(wanted["names"])
    ]
    found, before = {}, time.monotonic_ns()
    backend = registry.find("backend", wanted["backend"])
    found["import_ns"], before = time.monotonic_ns() - before, time.monotonic_ns()
    with backend.open(Path(wanted["folder"]), wanted["settings"]) as runner:
        found["open_ns"], before = time.monotonic_ns() - before, time.monotonic_ns()
        runner.run(feeds[0])
        answered = time.monotonic_ns()
        found |= {"first_ns": answered - before, "total_ns": answered - began_ns}
        for call in range(1, max(CALLS, len(feeds))):
            runner.run(feeds[call % len(feeds)])
    return {**found, "peak_bytes": _high_water()}


def _served(request: Path, device: str) -> Record:
    """What a new process has to tell that served `request`, and in a note what it was, where it was no such process."""
    began = time.monotonic_ns()
    if device != "cpu":
        return {**serve(request, began), "note": "of the worker that served, without the start of Python"}
    command = [sys.executable, "-P", "-m", "petra_deploy.worker.measure.memory", str(request), str(began)]
    note = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        told = done.stdout + done.stderr
    except PermissionError:
        told, note = _forked(request, began), "with the worker that was forked"
    except subprocess.TimeoutExpired:
        raise _too_slow() from None
    lines = told.strip().splitlines() or ["it died without a word"]
    marks = [line for line in lines if line.startswith(_MARK)]
    if not marks:
        raise Problem("crash", f"a process that only serves the engine failed: {lines[-1][:200]}")
    return {**json.loads(marks[-1].removeprefix(_MARK)), "note": note}


def _write_request(
    backend: str, folder: Path, settings: Mapping[str, object], feeds: Feeds, scratch: Path
) -> Path:  # fmt: skip
    names = [list(one) for one in feeds]
    for call, one in enumerate(feeds):
        for index, values in enumerate(one.values()):
            np.save(scratch / f"{call}-{index}.npy", values, allow_pickle=False)
    request = scratch / "request.json"
    request.write_text(
        json.dumps({"backend": backend, "folder": str(folder), "settings": dict(settings), "names": names})
    )
    return request


def _forked(request: Path, began_ns: int) -> str:
    """What a fork of this process has to tell: the marked record, or its error."""
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's idle threads survive a fork
        child = os.fork()
    if child == 0:
        try:
            os.write(sink, f"{_MARK}{json.dumps(serve(request, began_ns))}\n".encode())
        except BaseException as error:
            os.write(sink, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)  # none of the parent's clean-up runs here
    os.close(sink)
    try:
        ready, _, _ = select.select([source], [], [], PATIENCE)
        if not ready:
            raise _too_slow()
        return os.read(source, 4096).decode(errors="replace")
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _too_slow() -> Problem:
    return Problem("timeout", f"serving a few calls to see the memory took over {PATIENCE:.0f} s")


def _high_water() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{_MARK}{json.dumps(serve(Path(sys.argv[1]), int(sys.argv[2])))}\n")
