"""Peak memory of a process that serves one engine, and nothing else.

    peak_memory("onnxruntime", folder, settings, feeds, scratch)        # a Figure in bytes

A child of its own opens the engine, runs a few calls and tells its high-water mark (VmHWM): Python,
numpy and the runtime are in it, as they are in the smallest server; the other engine is not.

    python -P -m petra_deploy.worker.measure.memory REQUEST.json

In the jail no program can be started. There the child is a fork, so ask before any engine is open;
what the worker itself holds (some 30 MB) is then in the figure, whose note says so. For a GPU no child
will do, since in the jail CUDA starts in the worker alone: there the worker serves, before anything else.
"""

import json
import os
import select
import signal
import subprocess
import sys
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
_MARK = "petra-peak-bytes "


def peak_memory(
    backend: str, folder: Path, settings: Mapping[str, object], feeds: Feeds, scratch: Path, *, device: str = "cpu"
) -> Figure:
    """`feeds` are served in turn; `scratch` is an empty folder. Raises Problem when serving fails.

    Of the host's memory; what a GPU holds is not in it.
    """
    request = _write_request(backend, folder, settings, feeds, scratch)
    if device != "cpu":
        return Figure(value=float(serve(request)), unit="bytes", n=1, note="of the host, with the worker that served")
    command = [sys.executable, "-P", "-m", "petra_deploy.worker.measure.memory", str(request)]
    note = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        told = done.stdout + done.stderr
    except PermissionError:
        told, note = _forked(request), "with the worker that was forked"
    except subprocess.TimeoutExpired:
        raise _too_slow() from None
    lines = told.strip().splitlines() or ["it died without a word"]
    marks = [line for line in lines if line.startswith(_MARK)]
    if not marks:
        raise Problem("crash", f"a process that only serves the engine failed: {lines[-1][:200]}")
    value = float(marks[-1].removeprefix(_MARK))
    return Figure(value=value, unit="bytes", n=1, note=note)


def serve(request: Path) -> int:
    """Open the engine, run it, and return this process's peak resident bytes."""
    wanted = json.loads(request.read_text())
    feeds = [
        {name: np.load(request.parent / f"{call}-{index}.npy", allow_pickle=False) for index, name in enumerate(names)}
        for call, names in enumerate(wanted["names"])
    ]
    backend = registry.find("backend", wanted["backend"])
    with backend.open(Path(wanted["folder"]), wanted["settings"]) as runner:
        for call in range(max(CALLS, len(feeds))):
            runner.run(feeds[call % len(feeds)])
    return _high_water()


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


def _forked(request: Path) -> str:
    """What a fork of this process has to tell: the marked figure, or its error."""
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's idle threads survive a fork
        child = os.fork()
    if child == 0:
        try:
            os.write(sink, f"{_MARK}{serve(request)}\n".encode())
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
    sys.stdout.write(f"{_MARK}{serve(Path(sys.argv[1]))}\n")
