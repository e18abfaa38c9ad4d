"""Run jobs in child processes of this machine, under limits of time and memory.

    executor = open(Options(store=..., logs=..., read=(...)))
    answer = executor.run(job)              # a Done or a Failed; never raises for what a job does

Jobs with torch share a warm child, replaced after any failure, a passed limit, or a few dozen
jobs; a job of a `fresh` kind (Measure) gets a process of its own. Children die with this process,
run in their own process group, and are killed with it.
"""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from petra_deploy.core import files
from petra_deploy.core.job import Job
from petra_deploy.core.outcome import Done, Failed, FailureKind

_LOG_CAP = 4 << 20  # bytes of output kept a job
_JOBS_A_CHILD = 40
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_FOLDERS = {  # where packages would otherwise write into the user's home
    "TMPDIR": "tmp",
    "HABANA_LOGS": "tmp/inc",
    "MPLCONFIGDIR": "tmp/matplotlib",
    "NUMBA_CACHE_DIR": "tmp/numba",
    "CUDA_CACHE_PATH": "tmp/cuda",
    "TORCHINDUCTOR_CACHE_DIR": "tmp/inductor",
}
_KEPT = ("ORT_DISABLE_TELEMETRY",)  # of the variables by which a user's shell could change ONNX Runtime
_WORKER = "petra_deploy.worker.main"
_ROOT = Path(__file__).resolve().parents[3]  # what holds the package: children import the same one


@dataclass(frozen=True)
class Options:
    store: Path
    logs: Path
    read: tuple[Path, ...] = ()  # what children may read besides Python itself
    memory_gb: float | None = None  # of one child; None: 80% of this machine's
    overlay: tuple[Path, ...] = ()  # folders that children import from first (driver/overlay.py)


def open(options: Options) -> "LocalExecutor":
    options.logs.mkdir(parents=True, exist_ok=True)
    return LocalExecutor(options)


class LocalExecutor:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.jailed: bool | None = None  # None until the first child has said
        self._warm: _Child | None = None
        self._count = 0
        self._lock = threading.Lock()
        self._memory = int((options.memory_gb * 1e9) if options.memory_gb else psutil.virtual_memory().total * 0.8)

    def run(self, job: Job[Any]) -> Done[Any] | Failed:
        with self._lock:
            self._count += 1
            log = self.options.logs / f"{self._count:04d}-{job.kind}.log"
            child = self._child(fresh=job.fresh)
            keep = False
            try:
                answer = child.ask(job, log, self._limit(job))
                keep = isinstance(answer, Done) and child.jobs < _JOBS_A_CHILD and not job.fresh
                return answer
            finally:  # also on KeyboardInterrupt: nothing of ours stays behind
                if not keep:
                    child.kill()
                    if child is self._warm:
                        self._warm = None

    def elsewhere(self, job: Job[Any]) -> dict[str, Any]:
        """What the answer depends on beside the job and what is installed: the packages of the overlay."""
        return {"overlay": _packages(self.options.overlay)} if self.options.overlay else {}

    def close(self) -> None:
        if self._warm is not None:
            self._warm.kill()
            self._warm = None

    def _limit(self, job: Job[Any]) -> int:
        return int(job.limits.memory_gb * 1e9) if job.limits.memory_gb else self._memory

    def _child(self, *, fresh: bool) -> "_Child":
        if not fresh and self._warm is not None and self._warm.alive():
            return self._warm
        child = _Child(self.options, self._memory)
        if self.jailed is None:
            self.jailed = child.jailed
        if not fresh:
            self._warm = child
        return child


def _packages(folders: Sequence[Path]) -> dict[str, str]:
    """Their versions by name."""
    return {found.name: found.version for found in metadata.distributions(path=[str(folder) for folder in folders])}


class _Child:
    """One worker process, its two pipes, and the thread that keeps what it prints."""

    def __init__(self, options: Options, memory: int) -> None:
        job_read, self._jobs = os.pipe()
        self._answers, answer_write = os.pipe()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_") or k in _KEPT}
        path = [*map(str, options.overlay), str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        for name, folder in _FOLDERS.items():
            environment[name] = str(options.store / folder)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin: 10x slower beside other work
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER, str(job_read), str(answer_write), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(job_read, answer_write),
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(job_read)
            os.close(answer_write)
        self.jobs = 0
        self._log: Path | None = None
        self._written = 0
        threading.Thread(target=self._drain, daemon=True).start()
        read = [str(path) for path in options.read]
        self.jailed = False
        try:
            self._send({"store": str(options.store), "read": read, "memory_bytes": memory})
            hello = self._receive(time.monotonic() + 60, memory)
            self.jailed = isinstance(hello, dict) and bool(hello.get("jailed"))
        except BrokenPipeError:
            pass  # it died at once: the job's answer will say so

    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, job: Job[Any], log: Path, memory: int) -> Done[Any] | Failed:
        self.jobs += 1
        self._log, self._written = log, 0
        start = time.monotonic()

        def failed(kind: FailureKind, reason: str) -> Failed:
            return Failed(job=job.kind, kind=kind, reason=reason, log=str(log), seconds=time.monotonic() - start)

        fields = files.plain(job)
        with contextlib.suppress(BrokenPipeError):
            self._send({"job": job.kind, "fields": fields})
        message = self._receive(start + job.limits.seconds, memory)
        if message == "timeout":
            return failed("timeout", f"the time limit of {job.limits.seconds:.0f} s was reached")
        if message == "memory":
            return failed("memory", f"the memory limit of {memory / 1e9:.1f} GB was reached")
        if message is None:
            return failed(*self._obituary(job.kind))
        if "reason" in message:
            lost = files.decode(message, Failed, f"the answer of {job.kind}")
            return Failed(**{**lost.__dict__, "log": str(log)})
        value: Any = files.decode(message["value"], job.answer, f"the answer of {job.kind}")
        return Done(value=value, seconds=message["seconds"], log=str(log))

    def kill(self) -> None:
        """End the whole process group: SIGTERM, then SIGKILL."""
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3 if number == signal.SIGTERM else patience)
                if number == signal.SIGKILL:
                    break
        for handle in (self._jobs, self._answers):
            with contextlib.suppress(OSError):
                os.close(handle)

    def _obituary(self, kind: str) -> tuple[FailureKind, str]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code is not None and code < 0:
            return "crash", f"killed by signal {-code} ({signal.Signals(-code).name}) at {kind}"
        return "crash", f"the worker ended with exit code {code} at {kind}"

    def _drain(self) -> None:
        """Keep the child's output, a few megabytes a job, and read on so that it never blocks."""
        assert self.process.stdout is not None
        with self.process.stdout as pipe, contextlib.suppress(OSError, ValueError):
            while data := os.read(pipe.fileno(), 1 << 16):
                if self._log is None or self._written >= _LOG_CAP:
                    continue
                data = data[: _LOG_CAP - self._written]
                self._written += len(data)
                with contextlib.suppress(OSError), self._log.open("ab") as file:
                    file.write(data)

    def _send(self, message: Any) -> None:
        body = json.dumps(message, allow_nan=False).encode()
        data = memoryview(struct.pack("<I", len(body)) + body)
        while data:
            data = data[os.write(self._jobs, data) :]

    def _receive(self, deadline: float, memory: int) -> Any:
        """The next message; "timeout", "memory", or None when the child is gone."""
        buffer = bytearray()
        while True:
            if len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack("<I", buffer[:4])[0]):
                return json.loads(bytes(buffer[4 : 4 + size]))
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            if select.select([self._answers], [], [], min(left, 0.25))[0]:
                part = os.read(self._answers, 1 << 20)
                if not part:
                    return None
                buffer += part
            elif self._resident() > memory:
                return "memory"

    def _resident(self) -> int:
        """Bytes of memory that the child and its own children hold."""
        total = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += member.memory_info().rss
        return total
