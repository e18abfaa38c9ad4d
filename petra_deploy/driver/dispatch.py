"""The door between what decides and what does: find in the store, else send, and file the answer.

    run = Dispatch(store, executor)
    done = run(Transform(workload=..., strategy=...))       # Done[Graph] or Failed

A key is the hash of the job's kind and fields (its limits apart), a digest of our own doing code,
and the versions of the packages used; of what another machine does, that machine is in the key too.
Measurements are never filed; of failures only `unsupported` and `mismatch` are, since the rest may be the
machine's fault. A lost worker is tried once more.
"""

import functools
import hashlib
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

from petra_deploy.core import files
from petra_deploy.core.errors import PetraError
from petra_deploy.core.extension import Executor
from petra_deploy.core.job import Job
from petra_deploy.core.outcome import Done, Failed
from petra_deploy.core.store import Store

A = TypeVar("A")
_PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "onnxscript",
    "neural-compressor", "torchao", "torch-pruning", "numpy", "nvidia-modelopt",
)  # fmt: skip
_LASTING = ("unsupported", "mismatch")


class Dispatch:
    def __init__(self, store: Store, executor: Executor) -> None:
        self.store = store
        self.executor = executor
        self._alone = threading.Lock()

    def __call__(self, job: Job[A]) -> Done[A] | Failed:
        elsewhere = getattr(self.executor, "elsewhere", None)
        key = job_key(job, elsewhere(job) if elsewhere else {})
        if job.cached and (known := self._filed(job, key)) is not None:
            return known
        answer = self._send(job)
        if isinstance(answer, Failed) and answer.kind == "lost":
            answer = self._send(job)
        if job.cached and (isinstance(answer, Done) or answer.kind in _LASTING):
            files.write_json(self.store.answer(key), answer)
        return answer

    def _send(self, job: Job[A]) -> Done[A] | Failed:
        if not job.exclusive:
            return cast("Done[A] | Failed", self.executor.run(job))
        with self._alone:
            return cast("Done[A] | Failed", self.executor.run(job))

    def _filed(self, job: Job[A], key: str) -> Done[A] | Failed | None:
        """An earlier answer whose files are all still in the store."""
        path = self.store.answer(key)
        if not path.exists():
            return None
        try:
            data = files.parse_json(path)
            if "reason" in data:
                return files.decode(data, Failed, str(path))
            value: Any = files.decode(data["value"], job.answer, str(path))
        except (PetraError, KeyError, TypeError):
            return None  # torn or foreign: made again, and overwritten
        if any(entry not in self.store for entry in _entries(value)):
            return None
        return cast("Done[A]", Done(value=value, seconds=data["seconds"], log=data.get("log", ""), cached=True))


def job_key(job: Job[Any], elsewhere: Mapping[str, object]) -> str:
    """`elsewhere`: the facts of the other machine that does the job; empty for this one."""
    fields = files.plain(job)
    fields.pop("limits")
    parts = [job.kind, fields, code_digest(), versions(), *([elsewhere] if elsewhere else [])]
    return hashlib.sha256(files.canonical(parts)).hexdigest()


@functools.cache
def code_digest() -> str:
    """sha256 over the sources that do the work: a changed line makes every older answer unknown."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in ("core", "worker"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """The installed versions of the packages whose work an answer depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _entries(value: Any) -> list[str]:
    """The store keys that an answer names: fields called key, graph, outputs or rounds."""
    fields = value.__dict__ if hasattr(value, "__dict__") else {}
    return [v for k, v in fields.items() if k in ("key", "outputs", "rounds") and isinstance(v, str)]
