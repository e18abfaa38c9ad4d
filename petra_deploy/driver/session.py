"""One run's means: its folder, the store, the door to the workers, the clock, and who listens.

with open_session(request, folder, on_event) as session:
    loaded = session.must(Load(...))
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from petra_deploy.core import machine, registry
from petra_deploy.core.errors import BadInput, from_failure
from petra_deploy.core.event import Event, OnEvent
from petra_deploy.core.job import Job, Limits, Run
from petra_deploy.core.outcome import Failed
from petra_deploy.core.request import Request
from petra_deploy.core.store import Store, default_root
from petra_deploy.driver.dispatch import Dispatch
from petra_deploy.driver.place import Look

A = TypeVar("A")
_LOGS_SECONDS = 7 * 86_400


@dataclass(frozen=True, kw_only=True)
class Session:
    store: Store
    run: Run
    on_event: OnEvent
    started: float  # monotonic
    seconds: float  # the whole time budget
    jailed: Callable[[], bool | None]  # whether workers are shut in; None before the first has said
    look: Look = machine.look  # what a target is on the machine that engines run on, and whether it is there

    def must(self, job: Job[A]) -> A:
        """The answer of a job that everything needs; its failure ends the program."""
        done = self.run(job)
        if isinstance(done, Failed):
            raise from_failure(done)
        return done.value

    def left(self) -> float:
        return self.started + self.seconds - time.monotonic()

    def limits(self) -> Limits:
        """A job outside the search may take what is left and a little more, and half a minute at least."""
        return Limits(seconds=max(self.left() + 0.15 * self.seconds, 60.0))

    def say(self, text: str, kind: str = "stage") -> None:
        self.on_event(Event(kind=kind, text=text))  # type: ignore[arg-type]


@contextlib.contextmanager
def open_session(
    request: Request, logs: Path, on_event: OnEvent, *, executor: str = "local", read: Sequence[Path] = (),
    overlay: tuple[Path, ...] = (),
) -> Iterator[Session]:  # fmt: skip
    """Start the executor; it and all its processes are gone when the block is left, however that is.

    Workers may read what the request names, and `read`; those of this machine import from `overlay` first.
    """
    started = time.monotonic()
    store = Store(default_root())
    store.clean()
    remote = {"remote": request.remote} if request.remote else {}
    more = {**remote, **({"overlay": overlay} if overlay else {})}
    module = registry.find("executor", "ssh" if remote else executor)
    opened = module.open(module.Options(store=store.root, logs=logs, read=(*readable(request), *read), **more))
    try:
        yield Session(
            store=store,
            run=Dispatch(store, opened),
            on_event=on_event,
            started=started,
            seconds=request.budget.seconds,
            jailed=lambda: getattr(opened, "jailed", None),
            look=getattr(opened, "look", machine.look),
        )
    finally:
        opened.close()


@contextlib.contextmanager
def kept_logs(verb: str) -> Iterator[Path]:
    """A folder in the cache for the logs of a run that has none of its own; kept where the block ends in an error."""
    folder = default_root() / "logs" / f"{verb}-{os.getpid()}"
    for old in folder.parent.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _LOGS_SECONDS:
                shutil.rmtree(old)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the cache folder {folder.parent.parent} cannot be written: {error.strerror}",
                       "set PETRA_CACHE_DIR to a writable folder") from None  # fmt: skip
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def readable(request: Request) -> tuple[Path, ...]:
    """What workers may read: the folders of the inputs; everything where the user named a script of theirs.

    Writing stays confined to the cache either way.
    """
    model, data = request.model, request.data
    scripts = [part for part in (data.path, data.train, data.selection, data.test) if part and part.endswith(".py")]
    if scripts or data.cloudpickled or model.cloudpickled or model.factory or model.trust:
        return (Path("/"),)
    paths = [p for p in (model.path, data.path, data.train, data.selection, data.test) if p]
    if request.load.metric and ":" in request.load.metric:
        paths.append(request.load.metric.rpartition(":")[0])
    found = []
    for path in map(Path, paths):
        found.append(path if path.is_dir() else Path(os.path.realpath(path)).parent)
    return tuple(dict.fromkeys(p for p in found if p.exists()))
