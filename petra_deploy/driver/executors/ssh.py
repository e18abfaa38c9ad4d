"""Run what needs the target's runtime on the machine that has it, over plain ssh; everything else here.

    executor = open(Options(store=..., logs=..., remote=Remote(host="me@box")))
    target, why = executor.look(target)     # is it there? raises TargetAbsent, MissingExtra
    answer = executor.run(Measure(...))     # there; run(Transform(...)) is here, in a child of local.py

Builds, measurements and inference cross to `_supervisor` at the other end of one connection, with the store
entries that they name, labels left out; what they make comes back under the key of its bytes. Of a score the
metric is computed here. A cut connection is `Failed("lost")`, and the next job makes a new one.
"""

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput, PetraError, TargetAbsent
from petra_deploy.core.job import Bench, Infer, Job, Measure, Scored
from petra_deploy.core.outcome import Done, Failed, FailureKind
from petra_deploy.core.request import Remote
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Split
from petra_deploy.driver.executors import local
from petra_deploy.driver.executors._connection import Connection
from petra_deploy.driver.executors._wire import Late, Lost

THERE = ("build", "measure", "bench", "compare", "infer")
_SECONDS = 60.0  # for a question that is no job
_KEY = re.compile("[0-9a-f]{64}")
_KEYS = ("key", "rounds", "outputs")  # the fields of jobs and answers that name store entries


@dataclass(frozen=True)
class Options(local.Options):
    remote: Remote | None = None


def open(options: Options) -> "SshExecutor":
    return SshExecutor(options)


class SshExecutor:
    def __init__(self, options: Options) -> None:
        self.local = local.open(options)
        self.remote, self.logs, self.store = options.remote, options.logs, Store(options.store)
        self._connection: Connection | None = None
        self._runtime = ""
        self._facts: dict[str, Any] = {}  # of the machine there
        self._sent: set[str] = set()  # keys that this connection's machine has
        self._unlabelled: dict[str, str] = {}  # the key of a split -> the key of its rows alone
        self._count = 0
        self._lock = threading.Lock()

    @property
    def jailed(self) -> bool | None:
        return self.local.jailed

    def look(self, target: Target) -> tuple[Target, None]:
        """`target` as the remote machine fills it in.

        Raises TargetAbsent where that machine is not it (who names one wants it measured, not predicted) or
        cannot be reached; MissingExtra for what it lacks.
        """
        with self._lock:
            self._runtime = target.runtime
            self._drop()
            try:
                reply = self._connected().ask({"do": "look", "target": files.plain(target)}, _SECONDS)
            except (Lost, Late) as error:
                raise TargetAbsent(f"{self._name()}: {self._drop() or error}", "run it again") from None
        if reply["why"]:
            raise TargetAbsent(
                f"{self._name()} is not {target.name}: it {reply['why']}",
                "name the machine that has it; or leave the machine out for a bundle whose latencies are predicted",
            )
        if self._connection is not None and self._connection.wanting:
            raise self._connection.lacking(self._connection.wanting)
        return files.decode(reply["target"], Target, "the target, from the remote machine"), None

    def elsewhere(self, job: Job[Any]) -> dict[str, Any]:
        """What the answer depends on beside the job and this machine."""
        return self._facts if job.kind in (*THERE, Scored.kind) else {}

    def run(self, job: Job[Any]) -> Done[Any] | Failed:
        if isinstance(job, Scored):
            return self._score(job)
        return self._cross(job) if job.kind in THERE else self.local.run(job)

    def close(self) -> None:
        self._drop()
        self.local.close()

    def _score(self, job: Scored) -> Done[Any] | Failed:
        inferred = self._cross(Infer(engine=job.engine, target=job.target, split=job.split, limits=job.limits))
        if isinstance(inferred, Failed):
            return replace(inferred, job=job.kind)
        scored = self.local.run(replace(job, inferred=inferred.value.outputs))
        return replace(scored, seconds=scored.seconds + inferred.seconds)

    def _cross(self, job: Job[Any]) -> Done[Any] | Failed:
        with self._lock:
            self._count += 1
            log, start = self.logs / f"remote-{self._count:04d}-{job.kind}.log", time.monotonic()

            def failed(kind: FailureKind, reason: str, said: object = "") -> Failed:
                """`said` goes to the log alone: it may name the machine, and a reason may go into a bundle."""
                words = self._drop()
                with contextlib.suppress(OSError):
                    log.write_text("\n".join(filter(None, [str(said), words])) + "\n", encoding="utf-8")
                return Failed(job=job.kind, kind=kind, reason=reason, log=str(log), seconds=time.monotonic() - start)

            try:
                return self._ask(job, log)
            except Lost as lost:
                return failed("lost", "the connection to the remote machine was lost", lost)
            except Late:
                return failed("timeout", f"the remote machine gave no answer within twice {job.limits.seconds:.0f} s")
            except PetraError as error:
                return failed("lost", "there is no connection to the remote machine", error.message)
            except KeyError as error:
                return failed("crash", str(error.args[0]))
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                return failed("disk" if full else "crash", error.strerror or str(error))
            except BaseException:  # Ctrl-C: what runs there ends with the connection
                self._drop()
                raise

    def _ask(self, job: Job[Any], log: Path) -> Done[Any] | Failed:
        if isinstance(job, Measure | Bench | Infer):
            job = replace(job, split=self._without_labels(job.split))
        connection, fields = self._connected(), files.plain(job)
        wanted = [key for key in _named(fields) if key not in self._sent]
        for key in connection.ask({"do": "have", "keys": wanted}, _SECONDS)["missing"]:
            connection.put(self.store, key)
        self._sent |= set(wanted)
        # There it may wait for another driver's job, then runs under its own limit.
        patience = 2 * job.limits.seconds + _SECONDS
        reply = connection.ask({"do": "run", "job": job.kind, "fields": fields}, patience)
        log.write_text(reply["log"], encoding="utf-8")
        answer = reply["answer"]
        if "reason" in answer:
            return replace(files.decode(answer, Failed, f"the answer of {job.kind}"), log=str(log))
        for key in _named(answer["value"]):
            self._sent.add(key)
            if key not in self.store:
                connection.get(self.store, key)
        value: Any = files.decode(answer["value"], job.answer, f"the answer of {job.kind}")
        return Done(value=value, seconds=answer["seconds"], log=str(log))

    def _without_labels(self, split: Split) -> Split:
        """The same rows in an entry of their own (linked, not copied): what labels say stays here."""
        if not split.labelled:
            return split
        if split.key not in self._unlabelled:
            source = self.store.path(split.key)
            self._unlabelled[split.key] = self.store.add(lambda folder: _link_rows(source, folder))
        return replace(split, key=self._unlabelled[split.key], labelled=False)

    def _connected(self) -> Connection:
        """The connection, made anew where there is none. Raises PetraError."""
        if self.remote is None:
            raise BadInput("no remote machine was named", "name it with --remote HOST")
        if self._connection is None:
            self._connection = Connection(self.remote, self._runtime)
            blank = files.plain(Target(name="any", runtime="onnxruntime", device="cpu"))
            facts = self._connection.ask({"do": "look", "target": blank}, _SECONDS)["facts"]
            if self._facts and facts != self._facts:
                raise TargetAbsent(f"{self._name()} is another machine than before", "start the run again")
            self._facts = facts
        return self._connection

    def _drop(self) -> str:
        """End the connection; what was said last on it."""
        connection, self._connection = self._connection, None
        self._sent.clear()
        if connection is None:
            return ""
        connection.close()
        return connection.last_words()

    def _name(self) -> str:
        return self.remote.name if self.remote else "the remote machine"


def _link_rows(source: Path, folder: Path) -> None:
    """All files of a split (core/samples.py) but its labels."""
    for path in source.rglob("*"):
        if path.is_file() and path.name != "target.npy":
            there = folder / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, there)
            except OSError:  # a file system without links
                shutil.copyfile(path, there)


def _named(fields: Any) -> list[str]:
    """The store keys that a job or an answer names, each once."""
    found: list[str] = []
    for name, value in fields.items() if isinstance(fields, dict) else enumerate(fields):
        if isinstance(value, dict | list):
            found += _named(value)
        elif name in _KEYS and isinstance(value, str) and _KEY.fullmatch(value):
            found.append(value)
    return list(dict.fromkeys(found))
