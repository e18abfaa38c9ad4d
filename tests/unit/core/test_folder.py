import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput, OutOfDisk
from petra_deploy.core.folder import RunFolder, default_out, full_disk_ends_the_run, open_run
from petra_deploy.core.outcome import Budget, Failed, Outcome
from petra_deploy.core.request import Request
from petra_deploy.core.strategy import FULL, Step, Strategy
from petra_deploy.core.workload import ModelSource

REQUEST = Request(model=ModelSource(path="/m/model.pt"))
HOLD = "import sys,time; from pathlib import Path; from petra_deploy.core.folder import open_run\n"
HOLD += "with open_run(Path(sys.argv[1]), resume=False): print('in', flush=True); time.sleep(60)"


def hold(path: Path) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    return child


def test_a_second_run_is_refused_at_once_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    child = hold(tmp_path / "out")
    try:
        with pytest.raises(BadInput, match=f"process {child.pid} is running"), open_run(tmp_path / "out", False):
            pass
    finally:
        child.kill()
        child.wait()


def test_after_kill_9_of_the_first_run_the_next_starts(tmp_path: Path) -> None:
    child = hold(tmp_path / "out")
    child.send_signal(signal.SIGKILL)
    child.wait()
    with open_run(tmp_path / "out", resume=True) as folder:
        assert (folder.path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_not_inherited_by_children(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", False):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with open_run(tmp_path / "out", False):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_run_that_ended_while_loading_is_started_over(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", False) as folder:
        folder.begin(replace(REQUEST, seed=5))
    with open_run(tmp_path / "out", False) as folder:
        folder.begin(REQUEST)
        assert files.read_json(folder.request, Request) == REQUEST


def test_a_folder_with_a_run_needs_resume(tmp_path: Path) -> None:
    with open_run(tmp_path / "out", False) as folder:
        folder.begin(REQUEST)
        folder.trial(1)
    with pytest.raises(BadInput, match="already holds a run"), open_run(tmp_path / "out", False):
        pass
    with open_run(tmp_path / "out", True) as folder:
        folder.begin(REQUEST)


def test_resume_needs_a_run_and_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no run"), open_run(tmp_path / "none", True):
        pass
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_keeps_its_question_and_may_take_a_longer_budget(tmp_path: Path) -> None:
    longer = Request(model=REQUEST.model, budget=Budget(trials=99))
    other = Request(model=REQUEST.model, seed=3)
    with open_run(tmp_path, False) as folder:
        folder.begin(REQUEST)
        folder.begin(longer)
        with pytest.raises(BadInput, match="seed was 0 and is now 3"):
            folder.begin(other)


@pytest.mark.parametrize("name", ["bundle", "study.db", "trials"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for _ in range(2):  # the refusal must not make the folder look like ours
        with pytest.raises(BadInput, match="would be overwritten"), open_run(tmp_path, False):
            pass


def test_a_folder_that_holds_the_model_is_fine(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with open_run(tmp_path, False) as folder:
        assert folder.logs.is_dir()


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(BadInput, match=r"is a file|cannot be"), open_run(path, False):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written"), open_run(tmp_path / "out", False):
        pass


def test_a_full_disk_ends_the_run_with_its_own_exit_code(tmp_path: Path) -> None:
    with pytest.raises(OutOfDisk, match="No space left"), open_run(tmp_path, False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    with pytest.raises(OutOfDisk), full_disk_ends_the_run(tmp_path):
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full")
    with pytest.raises(ValueError, match="else"), full_disk_ends_the_run(tmp_path):
        raise ValueError("something else")


def test_a_bundle_caught_between_two_renames_is_put_back(tmp_path: Path) -> None:
    with open_run(tmp_path, False) as folder:
        folder.begin(REQUEST)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".bundle.{dead.pid}.old.tmp").mkdir()
    (tmp_path / f".bundle.{dead.pid}.old.tmp" / "manifest.json").write_text("{}")
    (tmp_path / f".bundle.{dead.pid}.tmp").mkdir()
    with open_run(tmp_path, True) as folder:
        assert (folder.bundle / "manifest.json").exists()
    assert not list(tmp_path.glob(".bundle*"))


def test_outcomes_are_read_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in (10, 2):
        strategy = Strategy(steps=(Step(technique="prune", options={"share": number / 10}),))
        failed = Failed(job="transform", kind="diverged", reason="loss is NaN")
        folder.record(number, Outcome(strategy=strategy, fidelity=FULL, failed=failed))
    assert list(folder.outcomes()) == [2, 10]
    assert folder.outcomes()[10].strategy.steps[0].options == {"share": 1.0}


def test_the_default_folder_is_named_after_what_brings_the_model() -> None:
    assert default_out("a/resnet.pt") == Path("petra-out/resnet")
    assert default_out(None, "nets/small.py:build") == Path("petra-out/small")
    assert default_out(None, None, "workload.py") == Path("petra-out/workload")
