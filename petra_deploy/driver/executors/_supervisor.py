"""The far end of `ssh.py`: takes jobs over standard input, runs them here under limits, hands files back.

Started over ssh by `_bootstrap`, on a machine that has neither torch nor optuna. It answers one request at a time:

    look    a target      what it is here, or why this machine is not it; and the facts that answers depend on
    have    keys          which of them the store lacks
    put     files         a store entry, kept only under the key that its bytes have
    run     a job         in a child process, by the local executor; one at a time among all drivers of this user
    get     a key         a store entry's files

When the connection ends, or nothing is heard for a minute, the running job is killed and this process ends.
"""

import contextlib
import errno
import fcntl
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from petra_deploy.core import files, machine
from petra_deploy.core.job import JOBS
from petra_deploy.core.outcome import Failed
from petra_deploy.core.store import Store, default_root
from petra_deploy.core.target import Target
from petra_deploy.driver.executors import local
from petra_deploy.driver.executors._wire import PATIENCE, Channel, Late, Lost, receive_folder, send_folder

_LOG_TAIL = 256 << 10  # bytes of a job's output that go back
_GRACE = 20.0  # seconds for the running job to be killed
_OLD = 30 * 86400  # seconds after which code of other versions is removed
_RUNTIMES = ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "openvino")


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    sink = os.dup(1)
    os.dup2(2, 1)  # whoever prints cannot write into the answers
    store = Store(default_root())
    channel, requests = Channel(0, sink), queue.Queue[dict[str, Any]]()
    logs = store.scratch()
    executor = local.open(local.Options(store=store.root, logs=logs))
    try:
        threading.Thread(target=_listen, args=(channel, store, requests), daemon=True).start()
        store.clean()
        _forget_old_code(store.root / "runner")
        while True:
            _answer(requests.get(), channel, store, executor)
    except (KeyboardInterrupt, Lost):
        pass  # the driver is gone
    finally:
        executor.close()
        shutil.rmtree(logs, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _listen(channel: Channel, store: Store, requests: "queue.Queue[dict[str, Any]]") -> None:
    """Read requests until the line ends; then have the main thread stop, whatever it does."""
    try:
        while True:
            message = channel.receive(time.monotonic() + PATIENCE)
            if message["do"] == "ping":
                continue
            if "files" in message:
                folder = message["folder"] = store.scratch()
                try:
                    receive_folder(channel, message["files"], folder)
                except OSError as error:
                    message["trouble"] = error
            requests.put(message)
    except (Lost, Late, OSError, KeyError, TypeError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)  # children die with this process


def _answer(message: dict[str, Any], channel: Channel, store: Store, executor: local.LocalExecutor) -> None:
    try:
        if message["do"] == "get":
            send_folder(channel, {}, store.path(message["key"]))
        else:
            channel.send(_DO[message["do"]](message, store, executor))
    except KeyError as error:
        channel.send({"trouble": "lost", "reason": str(error.args[0])})
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        channel.send({"trouble": "disk" if full else "crash", "reason": f"there: {error.strerror or error}"})


def _look(message: dict[str, Any], store: Store, executor: local.LocalExecutor) -> dict[str, Any]:
    target, why = machine.look(files.decode(message["target"], Target, "the target"))
    facts = {name: value for name, value in machine.fingerprint().items() if name not in ("governor", "affinity")}
    facts["runtimes"] = machine.versions(_RUNTIMES)
    facts["devices"] = [[device.name, device.compute_capability] for device in machine.cuda_devices()]
    return {"target": files.plain(target), "why": why, "facts": facts}


def _have(message: dict[str, Any], store: Store, executor: local.LocalExecutor) -> dict[str, Any]:
    missing = [key for key in message["keys"] if key not in store]
    for key in set(message["keys"]) - set(missing):
        os.utime(store.path(key))  # in use: not to be cleaned
    return {"missing": missing}


def _put(message: dict[str, Any], store: Store, executor: local.LocalExecutor) -> dict[str, Any]:
    received: Path = message["folder"]
    try:
        if "trouble" in message:
            raise message["trouble"]
        return {"key": store.add(lambda folder: [path.rename(folder / path.name) for path in received.iterdir()])}
    finally:
        shutil.rmtree(received, ignore_errors=True)


def _run(message: dict[str, Any], store: Store, executor: local.LocalExecutor) -> dict[str, Any]:
    job = files.decode(message["fields"], JOBS[message["job"]], f"the {message['job']} job")
    with _alone(store.root, job.limits.seconds) as alone:
        if not alone:
            reason = f"other drivers kept the machine busy for {job.limits.seconds:.0f} s"
            return {"answer": files.plain(Failed(job=job.kind, kind="timeout", reason=reason)), "log": ""}
        answer = executor.run(job)
    log = Path(answer.log)
    text = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace") if log.is_file() else ""
    log.unlink(missing_ok=True)
    return {"answer": files.plain(answer), "log": text}


_DO = {"look": _look, "have": _have, "put": _put, "run": _run}


@contextlib.contextmanager
def _alone(root: Path, seconds: float) -> Iterator[bool]:
    """One job at a time among the drivers that use this machine over ssh; False where none ended in time.

    Beside it a measurement holds its device's own lock, against what runs here without ssh.
    """
    deadline = time.monotonic() + seconds
    (root / "locks").mkdir(mode=0o700, exist_ok=True)
    handle = os.open(root / "locks" / "runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True
    finally:
        os.close(handle)


def _forget_old_code(home: Path) -> None:
    """Remove code that other versions left here, a month after it was last started."""
    ours = Path(__file__).resolve().parents[3]
    for folder in home.iterdir() if home.is_dir() else ():
        if folder.resolve() == ours:
            os.utime(folder)
        elif time.time() - folder.stat().st_mtime > _OLD:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
