"""An engine in a process of its own, which opens it and times it: for two versions of one runtime, which no process
can hold both.

    sides = openers({"baseline": now, "candidate": later}, store, overlays={"candidate": folder})
    with sides["candidate"](7) as partner:
        walls, cpus = partner.timed(rows, calls=11)         # nanoseconds a call, by the partner's own clock

`loop.one_round` takes these in place of Runners; what is timed is the same loop, on the other side of a pipe. While
one partner runs, this process and the other partner wait in a read, and all inherit the core that this one is kept
on. A partner is a child with an overlay (driver/overlay.py) first on its path:

    python -P -m petra_deploy.worker.measure.partner IN OUT

In the jail it is as jailed as its parent, and it ends when the pipe does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.outcome import Engine
from petra_deploy.core.store import Store
from petra_deploy.worker.measure.loop import Feeds, cpu_clock, timed
from petra_deploy.worker.wire import receive, receive_arrays, send, send_arrays

_ROOT = Path(__file__).resolve().parents[3]  # what holds the package: the partner imports the same one
_PATIENCE = 5.0  # seconds for a partner to go


def openers(
    engines: Mapping[str, Engine], store: Store, *, overlays: Mapping[str, Path | None], threads: int = 1
) -> dict[str, "Callable[[int], Partner]"]:
    """What opens each side's engine in a new process, given a seed for its place in memory.

    `overlays` has the folder that a side's process imports from first; None, or none, for what is installed.
    `threads` of the busier engine decide what is taken as processor time (`loop.cpu_clock`).
    """

    def opener(side: str, engine: Engine) -> "Callable[[int], Partner]":
        folder = store.path(engine.key)
        return lambda seed: Partner(engine, folder, overlays.get(side), seed=seed, threads=threads)

    return {side: opener(side, engine) for side, engine in engines.items()}


class Partner:
    """A side of loop.one_round. `load_ns` is what opening took in the partner, its start and imports apart."""

    def __init__(self, engine: Engine, folder: Path, overlay: Path | None, *, seed: int, threads: int) -> None:
        """Raises Problem where the partner cannot open the engine."""
        self._name = " ".join(f"{name} {version}" for name, version in engine.versions.items()) or engine.backend
        self._sent: list[Sequence[Feeds]] = []
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "petra_deploy.worker.measure.partner", str(theirs_in), str(theirs_out)],
                stdin=subprocess.DEVNULL, stdout=2,  # what a runtime prints goes to the log
                pass_fds=(theirs_in, theirs_out), env=environment(overlay),
            )  # fmt: skip
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        try:
            opened = self._ask({
                "backend": engine.backend, "folder": str(folder), "settings": engine.settings, "seed": seed,
                "threads": threads,
            })  # fmt: skip
            self.load_ns: int = opened["load_ns"]
            self.versions: dict[str, str] = opened["versions"]
        except BaseException:
            self.close()
            raise

    def timed(self, rows: Sequence[Feeds], calls: int, first: int = 0) -> tuple[list[int], list[int]]:
        """(by the clock, of the processor) nanoseconds of each of `calls`, whose feeds are `rows` in turn from `first`.

        Raises Problem where the engine cannot run, "crash" where the partner died.
        """
        known = next((number for number, sent in enumerate(self._sent) if sent is rows), None)
        if known is None:
            known = len(self._sent)
            self._ask({"rows": known}, rows)
            self._sent.append(rows)
        answer = self._ask({"run": known, "calls": calls, "first": first})
        return answer["wall_ns"], answer["cpu_ns"]

    def close(self) -> None:
        for handle in (self._in, self._out):
            if handle >= 0:
                os.close(handle)
        self._in = self._out = -1
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: dict[str, Any], rows: Sequence[Feeds] | None = None) -> Any:
        with contextlib.suppress(BrokenPipeError):
            send(self._out, message)
            if rows is not None:
                send_arrays(self._out, rows)
        answer = receive(self._in)
        if answer is None:
            raise Problem("crash", f"the process that serves the engine with {self._name} {self._obituary()}")
        if "problem" in answer:
            raise Problem(*answer["problem"])
        return answer

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"


def environment(overlay: Path | None) -> dict[str, str]:
    """This process's, with the overlay first among what is imported, and our package next."""
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [*([str(overlay)] if overlay else []), str(_ROOT), *(entry for entry in own if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def serve(source: int, sink: int) -> None:
    """Open the engine, then time what is asked until the pipe closes; what goes wrong is the answer."""
    if (wanted := receive(source)) is None:
        return
    try:
        backend = registry.find("backend", wanted["backend"])
        start = time.perf_counter_ns()
        with backend.open(Path(wanted["folder"]), wanted["settings"], seed=wanted["seed"]) as runner:
            took = time.perf_counter_ns() - start
            send(sink, {"load_ns": took, "versions": backend.describe()})
            clock, rows = cpu_clock(wanted["threads"]), {}
            while (asked := receive(source)) is not None:
                if "rows" in asked:
                    rows[asked["rows"]] = receive_arrays(source) or []
                    send(sink, {})
                    continue
                walls, cpus = timed(runner.run, rows[asked["run"]], asked["calls"], asked["first"], clock)
                send(sink, {"wall_ns": walls, "cpu_ns": cpus})
    except BrokenPipeError:
        raise
    except Problem as problem:
        send(sink, {"problem": [problem.kind, problem.reason, problem.hint]})
    except Exception as error:
        send(sink, {"problem": ["crash", f"{type(error).__name__}: {error}", ""]})


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        serve(int(sys.argv[1]), int(sys.argv[2]))
