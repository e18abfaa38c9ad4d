"""Peak memory of a process that serves one engine, and nothing else.

    peak_bytes("onnxruntime", folder, settings, feeds, scratch)

A child of its own opens the engine, runs a few calls and tells its high-water mark (VmHWM): Python,
numpy and the runtime are in it, as they are in the smallest server; the other engine is not.

    python -P -m petra_deploy.worker.measure.memory REQUEST.json
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem

CALLS = 5
_MARK = "petra-peak-bytes "
_PATIENCE = 300.0  # seconds


def peak_bytes(
    backend: str, folder: Path, settings: Mapping[str, object], feeds: Sequence[Mapping[str, NDArray[Any]]],
    scratch: Path,
) -> int:  # fmt: skip
    """Bytes. `feeds` are served in turn; `scratch` is an empty folder. Raises Problem "crash"."""
    names: list[list[str]] = []
    for call, one in enumerate(feeds):
        names.append(list(one))
        for index, values in enumerate(one.values()):
            np.save(scratch / f"{call}-{index}.npy", values, allow_pickle=False)
    request = scratch / "request.json"
    request.write_text(
        json.dumps({"backend": backend, "folder": str(folder), "settings": dict(settings), "names": names})
    )
    command = [sys.executable, "-P", "-m", "petra_deploy.worker.measure.memory", str(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Problem("timeout", f"serving a few calls to see the memory took over {_PATIENCE:.0f} s") from None
    told = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not told:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Problem("crash", f"the process that serves the engine ended with code {done.returncode}: {last[:200]}")
    return int(told[-1].removeprefix(_MARK))


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
