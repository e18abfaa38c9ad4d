"""Jobs on a second machine over a real ssh: what crosses, what comes back, and what a cut or a crash leaves."""

import fcntl
import os
import re
import signal
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from petra_deploy.core import machine, tails
from petra_deploy.core.errors import BadInput, MissingExtra, TargetAbsent
from petra_deploy.core.job import Bench, Build, Compare, Limits, Measure, Scored
from petra_deploy.core.outcome import Done, Engine, Failed
from petra_deploy.core.profile import SCENARIOS
from petra_deploy.core.request import Remote
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.verdict import share
from petra_deploy.core.workload import MetricSpec
from petra_deploy.driver.dispatch import Dispatch, job_key
from petra_deploy.driver.executors import ssh
from petra_deploy.driver.executors._connection import NEEDS, RUNTIMES
from tests.far_machine import PACKAGES, FarMachine
from tests.unit.worker.nets import CPU, add_graph, add_split, signature

SECONDS = Limits(seconds=120)


@pytest.fixture
def opened(far: FarMachine, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PETRA_SSH", far.ssh)
    executor = open_on(Remote(host="far", python=str(far.python)), store, tmp_path)
    executor.look(CPU)
    yield executor
    executor.close()
    gone(far.processes)


def open_on(remote: Remote, store: Store, folder: Path) -> ssh.SshExecutor:
    return ssh.open(ssh.Options(store=store.root, logs=folder / "logs", read=(folder,), remote=remote))


def gone(processes: Callable[[], list[Any]]) -> None:
    """Wait until none is left: what a lost connection leaves behind must end by itself."""
    deadline = time.monotonic() + 30
    while (left := processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, [process.cmdline() for process in left]


def engine(executor: Any, store: Store, *widths: int) -> Engine:
    done = executor.run(Build(graph=add_graph(store, widths), target=CPU, limits=SECONDS))
    assert isinstance(done, Done), done
    return done.value


def long_measure(executor: Any, store: Store) -> Measure:
    one = engine(executor, store, 8)
    return Measure(engine=one, baseline=one, target=CPU, split=add_split(store), rounds=60, seconds=5, limits=SECONDS)


def while_it_measures(far: FarMachine, deed: Callable[[], None]) -> threading.Thread:
    """Do `deed` once a measurement holds the device there."""

    def wait() -> None:
        path, deadline = far.cache / "locks" / "cpu.lock", time.monotonic() + 60
        while time.monotonic() < deadline:
            if path.exists():
                with open(path) as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        break
            time.sleep(0.05)
        deed()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_packages_of_the_runner_are_written_down_once() -> None:
    """In pyproject.toml with their versions, in the code by what they are imported as, in the docs as a command."""
    root = Path(__file__).resolve().parents[4]
    group = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]["runner"]
    names = {need.partition(">")[0] for need in group}
    assert names == {*NEEDS.values(), *RUNTIMES["onnxruntime"].values()} == set(PACKAGES)
    command = re.search(r"-m pip install ([a-z -]+)\"", (root / "docs" / "remote.md").read_text())
    assert command is not None
    assert set(command[1].split()) == names


def test_the_far_environment_has_neither_torch_nor_optuna(far: FarMachine) -> None:
    for name in ("torch", "optuna", "petra_deploy"):
        command = [far.python, "-c", f"import {name}"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, env={})
        assert f"No module named '{name}'" in done.stderr


def test_engines_rounds_and_outputs_are_made_there_and_come_back(
    opened: Any, far: FarMachine, store: Store, tmp_path: Path
) -> None:
    small, large, split = engine(opened, store, 4), engine(opened, store, 64, 64), add_split(store)
    assert (store.path(small.key) / "model.onnx").read_bytes()
    assert small.key in Store(far.cache)
    assert small.facts["operators"]
    job = Measure(
        engine=small, baseline=large, target=CPU, split=split, rounds=2, seconds=0.1, batches=(1,), limits=SECONDS
    )
    measured = opened.run(job)
    assert isinstance(measured, Done), measured
    assert measured.value.speedup.known() > 1
    assert (store.path(measured.value.rounds) / "rounds.json").exists()
    assert set(measured.value.machine["versions"]) == {"onnxruntime", "onnx", "numpy"}, "no torch there"
    assert "far" not in str(measured.value.machine)
    again = opened.run(replace(job, earlier=measured.value))  # its first rounds are there already
    assert again.value.speedup.n == 4
    (tmp_path / "mine.py").write_text("import torch\ndef share(outputs, targets):\n    return float(torch.ones(1))\n")
    metric = MetricSpec(name=f"{tmp_path / 'mine.py'}:share", bounded=False)
    scored = Scored(engine=small, target=CPU, split=split, split_name="test", metric=metric, signature=signature(),
                    limits=SECONDS)  # fmt: skip
    done = opened.run(scored)
    assert isinstance(done, Done), done
    assert done.value.value == 1.0, "the metric needs torch, so it was computed here"
    assert done.value.outputs in store
    assert done.value.outputs in Store(far.cache)


def test_an_engine_is_benched_there_and_every_round_comes_back(opened: Any, store: Store) -> None:
    job = Bench(engine=engine(opened, store, 4), target=CPU, split=add_split(store), rounds=2, seconds=0.05,
                scenarios=SCENARIOS, batches=(1,), limit_ms=100.0, limits=SECONDS)  # fmt: skip
    done = opened.run(job)
    assert isinstance(done, Done), done
    assert tuple(s.name for s in done.value.scenarios) == SCENARIOS
    assert tails.again(done.value) == done.value
    assert set(done.value.machine["versions"]) == {"onnxruntime", "onnx", "numpy"}, "no torch there"
    assert done.value.cold.total.known() > done.value.cold.load.known() > 0


def test_two_engines_are_compared_there_and_every_round_comes_back(opened: Any, store: Store) -> None:
    gates = share(latency=0.5)
    job = Compare(base=engine(opened, store, 4), new=engine(opened, store, 40), target=CPU, split=add_split(store),
                  gates=gates, most_rounds=8, seconds=0.05, limits=SECONDS)  # fmt: skip
    done = opened.run(job)
    assert isinstance(done, Done), done
    assert len(done.value.rounds) >= 6
    assert "torch" not in done.value.machine["versions"]


def test_the_target_is_looked_at_there(opened: Any) -> None:
    found, why = opened.look(replace(CPU, detect=True))
    assert why is None
    assert found.instructions == machine.instructions(), "which is the same processor, in this test"
    assert found.memory_gb
    gpu = Target(name="odd", runtime="onnxruntime", device="cuda", compute_capability="99.9")
    with pytest.raises(TargetAbsent, match="far is not odd: it needs") as caught:
        opened.look(gpu)
    assert caught.value.exit_code == 3


def test_answers_from_there_are_not_those_from_here(opened: Any, store: Store) -> None:
    build = Build(graph=add_graph(store), target=CPU)
    facts = opened.elsewhere(build)
    assert "torch" not in facts["versions"]
    assert job_key(build, facts) != job_key(build, {})
    assert Dispatch(store, opened)(build) != Dispatch(store, opened.local)(build)
    assert Dispatch(store, opened)(build).cached  # type: ignore[union-attr]


def test_a_cut_connection_is_lost_and_nothing_of_it_runs_on(opened: Any, far: FarMachine, store: Store) -> None:
    job = long_measure(opened, store)
    before = opened._connection.process.pid
    cutter = while_it_measures(far, lambda: os.kill(before, signal.SIGKILL))
    failed = opened.run(job)
    cutter.join()
    assert (failed.kind, failed.reason) == ("lost", "the connection to the remote machine was lost")
    gone(far.processes)
    assert isinstance(opened.run(Build(graph=add_graph(store, (5,)), target=CPU, limits=SECONDS)), Done)
    assert opened._connection.process.pid != before


def test_a_lost_job_is_tried_once_more(opened: Any, far: FarMachine, store: Store) -> None:
    job = replace(long_measure(opened, store), rounds=1, seconds=1, batches=(1,))
    cutter = while_it_measures(far, lambda: os.kill(opened._connection.process.pid, signal.SIGKILL))
    done = Dispatch(store, opened)(job)
    cutter.join()
    assert isinstance(done, Done), done
    assert len(list(opened.logs.glob("remote-*-measure.log"))) == 2


def test_a_crash_there_is_told_with_its_signal_and_the_connection_stays(
    opened: Any, far: FarMachine, store: Store
) -> None:
    job = long_measure(opened, store)
    before = opened._connection.process.pid

    def crash() -> None:
        workers = far.workers()
        for worker in workers:
            worker.send_signal(signal.SIGSEGV)
        psutil.wait_procs(workers, timeout=10)  # the idle ones too, before another job could be sent to them

    killer = while_it_measures(far, crash)
    failed = opened.run(job)
    killer.join()
    assert failed.kind == "crash"
    assert "SIGSEGV" in failed.reason
    engine(opened, store, 6)
    assert opened._connection.process.pid == before


def test_one_job_at_a_time_among_all_drivers(opened: Any, far: FarMachine, store: Store) -> None:
    engine(opened, store, 4)
    with open(far.cache / "locks" / "runner.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waited = opened.run(Build(graph=add_graph(store, (7,)), target=CPU, limits=Limits(seconds=1)))
    assert isinstance(waited, Failed)
    assert (waited.kind, waited.reason) == ("timeout", "other drivers kept the machine busy for 1 s")


def test_a_graph_that_is_nowhere_is_an_answer(opened: Any, store: Store) -> None:
    graph = replace(add_graph(store), key="0" * 64)
    failed = opened.run(Build(graph=graph, target=CPU))
    assert isinstance(failed, Failed)
    assert "no entry 000000000000" in failed.reason


def test_what_cannot_be_reached_is_3_and_what_is_lacking_there_4(
    far: FarMachine, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETRA_SSH", far.ssh)

    def refused(remote: Remote, kind: type[Exception], code: int) -> tuple[str, str]:
        executor = open_on(remote, store, tmp_path)
        with pytest.raises(kind) as caught:
            executor.look(CPU)
        executor.close()
        assert caught.value.exit_code == code  # type: ignore[attr-defined]
        return caught.value.message, caught.value.hint  # type: ignore[attr-defined]

    said, hint = refused(Remote(host="stranger"), TargetAbsent, 3)
    assert "stranger cannot be reached: me@127.0.0.1: Permission denied" in said
    assert "ssh-copy-id" in hint
    assert "Connection refused" in refused(Remote(host="far", port=1), TargetAbsent, 3)[0]
    said, hint = refused(Remote(host="far", python="/nowhere/python3"), MissingExtra, 4)
    assert said.startswith("far has no Python called /nowhere/python3")
    assert "--remote-python" in hint
    said, hint = refused(Remote(host="far", python=str(far.bare)), MissingExtra, 4)
    assert said.endswith("lacks numpy, pydantic, annotated-types, psutil, onnxruntime, onnx")
    assert "-m pip install numpy pydantic annotated-types psutil onnxruntime onnx" in hint
    monkeypatch.setenv("PETRA_SSH", "no-such-ssh")
    assert "cannot be started" in refused(Remote(host="far"), MissingExtra, 4)[0]
    monkeypatch.setenv("PETRA_SSH", "ssh '")
    assert "PETRA_SSH is no command" in refused(Remote(host="far"), BadInput, 2)[0]
