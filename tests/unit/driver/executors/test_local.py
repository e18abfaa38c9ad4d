"""Faults in a real child: a user's factory that crashes, hangs, eats memory, floods, or forges.

All are given to one executor, one after another, as a search does: what the last one left of its
child must serve the next, and a child costs seconds of importing torch.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from petra_deploy.core.job import Limits, Load
from petra_deploy.core.outcome import Done, Failed
from petra_deploy.core.store import Store
from petra_deploy.core.workload import DataSource, LoadOptions, ModelSource
from petra_deploy.driver.executors import local

GOOD = "import torch\ndef build():\n    return torch.nn.Linear(4, 2)\n"


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executor")
    store = Store(folder / "store")
    opened = local.open(local.Options(store=store.root, logs=folder / "logs", read=(Path("/"),)))
    yield opened
    opened.close()


def job(tmp_path, code, **limits):
    path = tmp_path / "net.py"
    path.write_text(code)
    return Load(
        model=ModelSource(path=None, factory=f"{path}:build"),
        data=DataSource(),
        options=LoadOptions(inputs=("x:float32[1,4]",)),
        limits=Limits(**limits),
    )


def build(body):
    return f"import ctypes, os, sys, time, torch\ndef build():\n    {body}\n    return torch.nn.Linear(4, 2)\n"


def test_an_answer_comes_back_and_the_child_stays_warm(executor, tmp_path):
    first = executor.run(job(tmp_path, GOOD))
    assert isinstance(first, Done), first
    assert first.value.workload.signature.inputs[0].name == "x"
    pid = executor._warm.process.pid
    assert isinstance(executor.run(job(tmp_path, GOOD)), Done)
    assert executor._warm.process.pid == pid


@pytest.mark.parametrize(
    ("body", "word"),
    [("ctypes.string_at(0)", "SIGSEGV"), ("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), 9)", "SIGKILL")],
)
def test_a_native_crash_is_a_failure_with_its_signal_and_the_next_job_works(executor, tmp_path, body, word):
    failed = executor.run(job(tmp_path, build(body)))
    assert isinstance(failed, Failed)
    assert word in failed.reason
    assert "load" in failed.reason
    assert isinstance(executor.run(job(tmp_path, GOOD)), Done)


def test_sys_exit_in_user_code_is_a_failure(executor, tmp_path):
    failed = executor.run(job(tmp_path, build("sys.exit(0)")))
    assert isinstance(failed, Failed)


def test_a_hang_ends_at_the_time_limit_even_when_sigterm_is_ignored(executor, tmp_path):
    assert isinstance(executor.run(job(tmp_path, GOOD)), Done)  # torch is imported: the limit meets the hang itself
    code = build("__import__('signal').signal(15, lambda *a: None)\n    while True: pass")
    failed = executor.run(job(tmp_path, code, seconds=3))
    assert (failed.kind, failed.reason) == ("timeout", "the time limit of 3 s was reached")


@pytest.mark.parametrize("body", ["torch.empty(100 << 30, dtype=torch.uint8).fill_(1)", "x = bytearray(100 << 30)"])
def test_a_huge_allocation_is_a_memory_failure(executor, tmp_path, body):
    failed = executor.run(job(tmp_path, build(body), seconds=60))
    assert failed.kind == "memory"


def test_a_leak_is_stopped_at_the_limit(executor, tmp_path):
    code = build("held = []\n    while True: held.append(bytearray(b'x' * (16 << 20))); time.sleep(0.01)")
    failed = executor.run(job(tmp_path, code, seconds=120, memory_gb=1.5))
    assert failed.kind == "memory"
    assert "1.5 GB" in failed.reason


def test_a_flood_of_output_is_cut_and_cannot_forge_an_answer(executor, tmp_path):
    body = "[os.write(1, b'{\"value\": 1}' * 1000) for _ in range(2000)]"
    done = executor.run(job(tmp_path, build(body)))
    assert isinstance(done, Done)
    assert Path(done.log).stat().st_size <= 4 << 20


def test_nothing_is_written_outside_the_store(executor, tmp_path):
    if not executor.run(job(tmp_path, GOOD)) or not executor.jailed:
        pytest.skip("this kernel offers no Landlock")
    canary = tmp_path / "canary"
    failed = executor.run(job(tmp_path, build(f"open({str(canary)!r}, 'w')")))
    assert isinstance(failed, Failed)
    assert not canary.exists()


def test_a_stop_while_a_job_runs_leaves_no_process_behind(executor, tmp_path, request):
    """Ctrl-C arrives in the waiting driver; the child is gone before the exception is out."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert isinstance(executor.run(job(tmp_path, GOOD)), Done)  # a warm child, so that the stop meets the job
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        executor.run(job(tmp_path, build("time.sleep(600)")))
    assert executor._warm is None


def test_children_die_with_a_killed_driver(tmp_path):
    (tmp_path / "net.py").write_text(build("time.sleep(600)"))
    script = (
        "from pathlib import Path\n"
        "from petra_deploy.core.job import Load\n"
        "from petra_deploy.core.workload import DataSource, LoadOptions, ModelSource\n"
        "from petra_deploy.driver.executors import local\n"
        f"root = Path({str(tmp_path)!r})\n"
        "from petra_deploy.core.store import Store\n"
        "e = local.open(local.Options(store=Store(root / 'store').root, logs=root / 'logs', read=(Path('/'),)))\n"
        "m = ModelSource(path=None, factory=str(root / 'net.py') + ':build')\n"
        "e.run(Load(model=m, data=DataSource(), options=LoadOptions(inputs=('x:float32[1,4]',))))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script])
    child = _child_of(driver.pid)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def _child_of(pid):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError("the driver started no child")
