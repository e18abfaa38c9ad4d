"""The child: reads jobs from one pipe, writes answers to another; every exception becomes Failed.

Started by name (`python -m petra_deploy.worker.main IN OUT`), never imported by the driver. Both
pipes carry JSON with a four-byte length before it; what a job prints goes to stdout and stderr, so
a model that prints cannot forge an answer. The first message sets the child up (store, jail).
"""

import ctypes
import errno
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput, PetraError, Problem
from petra_deploy.core.job import JOBS
from petra_deploy.core.outcome import Done, Failed
from petra_deploy.core.store import Store
from petra_deploy.worker import jail
from petra_deploy.worker.context import Context
from petra_deploy.worker.wire import receive, send

_PR_SET_PDEATHSIG = 1


def main() -> None:
    source, sink = int(sys.argv[1]), int(sys.argv[2])
    parent = int(sys.argv[3])
    _die_with(parent)
    os.set_inheritable(source, False)
    os.set_inheritable(sink, False)
    setup = receive(source)
    store = Store(Path(setup["store"]))
    jailed = jail.jail(
        read=[*jail.python_paths(), *(Path(p) for p in setup["read"])],
        write=[store.root, Path(os.devnull)],
        memory_bytes=setup["memory_bytes"],
        programs=True,  # neural-compressor asks the system's tools about the processor; they are jailed too
    )
    send(sink, {"jailed": jailed})
    context = Context(store, _log)
    while (message := receive(source)) is not None:
        send(sink, files.plain(perform(message["job"], message["fields"], context)))


def perform(kind: str, fields: Any, context: Context) -> Done[Any] | Failed:
    """Do one job; whatever goes wrong is the answer."""
    start = time.monotonic()

    def failed(failure: Any, reason: str, hint: str = "") -> Failed:
        _log(f"{kind} failed ({failure}): {reason}")
        return Failed(job=kind, kind=failure, reason=_one_line(reason), hint=hint, seconds=time.monotonic() - start)

    try:
        job = files.decode(fields, JOBS[kind], f"the {kind} job")
        module = importlib.import_module(f"petra_deploy.worker.jobs.{kind}")
        value = module.run(job, context)
        return Done(value=value, seconds=time.monotonic() - start)
    except Problem as problem:
        if _out_of_memory(problem):
            return failed("memory", f"the memory limit was reached: {problem.reason}")
        return failed(problem.kind, problem.reason, problem.hint)
    except BadInput as error:
        return failed("input", error.message, error.hint)
    except PetraError as error:
        return failed("unsupported", error.message, error.hint)
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return failed("disk" if full else "crash", f"{type(error).__name__}: {error}")
    except SystemExit as error:
        return failed("crash", f"user code called sys.exit({error.code!r})")
    except BaseException as error:
        traceback.print_exc()
        if _out_of_memory(error):
            return failed("memory", "the memory limit was reached")
        return failed("crash", f"{type(error).__name__}: {error}")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a refused allocation (Python's, torch's or CUDA's)."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(text: str, most: int = 400) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
