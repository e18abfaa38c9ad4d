"""What lies where in `--out`, and the promise that one run at a time works in it.

with open_run(Path("petra-out/model"), resume=False) as folder:
    folder.begin(request)
    files.write_json(folder.trial(3) / "outcome.json", outcome)

run.json            the request          trials/0003/      strategy.json, outcome.json
study.db            Optuna's storage     logs/             one file a job
front.json          the front            baseline/         model.onnx, what ratios refer to
lock                the running pid      bundle/           what ships
                                         front/            finalists of a predicted run, a bundle each
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput, Interrupted, OutOfDisk
from petra_deploy.core.outcome import Outcome
from petra_deploy.core.request import Request, differences

_OURS = ("run.json", "study.db", "front.json", "trials", "logs", "baseline", "bundle", "front")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # nothing else would get through either


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder; get one from `open_run`, or make one to read a finished run."""

    path: Path

    @property
    def request(self) -> Path:
        return self.path / "run.json"

    @property
    def study(self) -> Path:
        return self.path / "study.db"

    @property
    def front(self) -> Path:
        return self.path / "front.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    def finalist(self, key: str) -> Path:
        """The bundle of a finalist whose latency was predicted, by its engine's key; not made here."""
        return self.path / "front" / key[:16]

    def trial(self, number: int) -> Path:
        """The folder of a trial, made when it is not there."""
        folder = self.path / "trials" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, number: int, outcome: Outcome) -> None:
        """Write a trial's strategy and outcome, each whole or not at all."""
        folder = self.trial(number)
        files.write_json(folder / "strategy.json", outcome.strategy)
        files.write_json(folder / "outcome.json", outcome)

    def outcomes(self) -> dict[int, Outcome]:
        """The recorded outcomes by trial number, in order."""
        found = sorted((self.path / "trials").glob("*/outcome.json"))
        return {int(path.parent.name): files.read_json(path, Outcome) for path in found if path.parent.name.isdigit()}

    def begin(self, request: Request) -> None:
        """Write the request, or check that it is the one that this run was started with.

        Raises BadInput naming what differs. A resumed run takes the new budget and device.
        """
        if self.request.exists():
            old = files.read_json(self.request, Request)
            if changed := differences(old, request):
                raise BadInput(
                    f"{self.path} holds a run of another request: {'; '.join(changed[:3])}",
                    "resume with the same options, or choose another --out",
                )
        files.write_json(self.request, request)


@contextlib.contextmanager
def open_run(path: Path, resume: bool) -> Iterator[RunFolder]:
    """Own the run folder `path` until the block ends; made when it is not there.

    Raises BadInput at once where another process runs in it (its pid is named), where it holds a
    run and `resume` is false, where it holds none and `resume` is true, and where it cannot be
    written; OutOfDisk where the disk is full, now or inside the block. The lock is the kernel's:
    it ends with the process, however that ends.
    """
    try:
        began = (path / "lock").exists()
        taken = [] if began else [name for name in _OURS if (path / name).exists()]
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", "choose another --out") from None
    if resume and not began:
        raise BadInput(f"{path} holds no run to resume", "start it without --resume, or name its --out")
    if taken:
        raise BadInput(f"{path} is not a run folder, and its {taken[0]} would be overwritten", "choose another --out")
    with full_disk_ends_the_run(path):
        folder = RunFolder(path)
        handle = _lock(path)
        try:
            _check(folder, resume)
            _tidy(folder)
            folder.logs.mkdir(exist_ok=True)
            yield folder
        finally:
            os.close(handle)


def default_out(model: str | None, factory: str | None = None, data: str | None = None) -> Path:
    """`petra-out/<model name>`, the name being that of the file that brings the model."""
    source = model or (factory.split(":")[0] if factory else None) or data
    name = Path(source).stem if source else "model"
    return Path("petra-out") / (name or "model")


@contextlib.contextmanager
def interruptible(folder: RunFolder) -> Iterator[None]:
    """Turn Ctrl-C into Interrupted, which says where the best so far is."""
    try:
        yield
    except KeyboardInterrupt:
        there = (folder.bundle / "manifest.json").exists()
        best = f"the best so far is in {folder.bundle}" if there else "no bundle was ready yet"
        raise Interrupted(f"stopped; {best}", "go on with the same command and --resume") from None


@contextlib.contextmanager
def full_disk_ends_the_run(path: Path) -> Iterator[None]:
    """Turn "no space left" (quota, size limit, I/O error) into OutOfDisk, which can be resumed."""
    try:
        yield
    except Exception as error:
        if (reason := disk_fault(error)) is None:
            raise
        raise OutOfDisk(
            f"nothing more can be written to {path}: {reason}",
            "free some space and run the same command with --resume; what is finished is kept",
        ) from error


def disk_fault(error: BaseException | None) -> str | None:
    """What `error`, or what caused it, says of a full disk; None when it is about something else."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.strerror
        for said in ("database or disk is full", "disk I/O error"):  # SQLite, through whatever wraps it
            if said in str(error):
                return said
        error = error.__cause__ or error.__context__
    return None


def _lock(path: Path) -> int:
    """Take the folder's lock; returns the handle that holds it (closed on exec, so no child inherits it)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"{path} is a file, not a folder", "choose another --out") from None
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise BadInput(f"{path} cannot be written: {error.strerror}", "choose another --out") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise BadInput(
            f"process {pid} is running in {path}", "wait for it, stop it with Ctrl-C, or choose another --out"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check(folder: RunFolder, resume: bool) -> None:
    if not os.access(folder.path, os.W_OK | os.X_OK):
        raise BadInput(f"{folder.path} cannot be written: no permission", "choose another --out")
    if folder.request.exists() and not resume:
        if not _worth_keeping(folder):  # it ended while loading: the corrected command starts over
            folder.request.unlink()
            shutil.rmtree(folder.logs, ignore_errors=True)
            return
        raise BadInput(
            f"{folder.path} already holds a run", "continue it with --resume, or choose another --out for a new one"
        )


def _worth_keeping(folder: RunFolder) -> bool:
    """Whether a run got as far as its baseline."""
    return any(path.exists() for path in (folder.baseline, folder.study, folder.bundle, folder.path / "trials"))


def _tidy(folder: RunFolder) -> None:
    """Finish or remove what a killed run left half done."""
    for kept in (folder.bundle, folder.baseline):
        olds = sorted(folder.path.glob(f".{kept.name}.*.old.tmp"))
        if olds and not kept.exists():  # killed between the two renames of a replacement
            os.rename(olds[-1], kept)
    files.remove_stale(folder.path)
    for trial in (folder.path / "trials").glob("*"):
        files.remove_stale(trial)
