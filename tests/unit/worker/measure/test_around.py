"""What stands around the loop: the device's lock, the core, the state of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.store import Store
from petra_deploy.worker.measure import memory, preflight
from petra_deploy.worker.measure.lock import exclusive
from tests.unit.worker.nets import SIDE, add_graph

HOLDER = """
import sys
from pathlib import Path
from petra_deploy.worker.measure.lock import exclusive
with exclusive(Path(sys.argv[1]), "cpu", print):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_measurement_waits_until_the_first_is_gone_killed_or_not(tmp_path: Path) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def say(line: str) -> None:
            lines.append(line)
            holder.kill()  # nobody unlocks for it

        with exclusive(tmp_path, "cpu", say):
            holder.wait()
    assert lines == ["another measurement holds the device cpu: waiting"]


def test_different_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    lines: list[str] = []
    with exclusive(tmp_path, "cpu", lines.append), exclusive(tmp_path, "cuda", lines.append):
        assert lines == []


def test_one_thread_is_kept_on_one_core_and_set_free_again() -> None:
    before = os.sched_getaffinity(0)
    with preflight.pinned(1) as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with preflight.pinned(2) as core:
        assert core is None
        assert os.sched_getaffinity(0) == before


def test_a_loaded_machine_and_a_saving_governor_are_said_with_what_to_do() -> None:
    before = {"load": 1e3, "governor": "powersave", "jiffies": 0, "steal_jiffies": 0}
    found = preflight.warnings(before, {**before, "jiffies": 100, "steal_jiffies": 10})
    assert [word in text for word, text in zip(("load", "cpupower", "10%"), found, strict=True)] == [True] * 3
    quiet = {"load": 0.0, "governor": "performance", "jiffies": 0, "steal_jiffies": 0}
    assert preflight.warnings(quiet, {**quiet, "jiffies": 100}) == []
    assert preflight.state()["jiffies"]


def test_peak_memory_is_that_of_a_process_which_only_serves(store: Store) -> None:
    feeds = [{"image": np.ones((1, 3, SIDE, SIDE), np.float32)}]
    folder = store.path(add_graph(store).key)
    peak = memory.peak_memory("onnxruntime", folder, {"threads": 1}, feeds, store.scratch())
    assert 20e6 < peak.known() < 500e6
    assert peak.note == ""


def test_where_no_program_can_be_started_a_fork_serves(store: Store) -> None:
    code = f"""
import sys
from pathlib import Path
from petra_deploy.worker.jail import available, jail, python_paths
if not available():
    sys.exit(print("no jail"))
root = Path({str(store.root)!r})
jail(python_paths(), [root])
import numpy as np
from petra_deploy.worker.measure.memory import peak_memory
feeds = [{{"image": np.ones((1, 3, {SIDE}, {SIDE}), np.float32)}}]
for folder in ({str(store.path(add_graph(store).key))!r}, {str(store.scratch())!r}):
    scratch = root / "tmp" / f"s{{len(folder)}}"
    scratch.mkdir()
    try:
        peak = peak_memory("onnxruntime", Path(folder), {{"threads": 1}}, feeds, scratch)
        print(20e6 < peak.known() < 500e6, peak.note)
    except Exception as error:
        print(type(error).__name__, error)
"""
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    if told.startswith("no jail"):
        pytest.skip("this kernel has no Landlock")
    assert "True with the worker that was forked" in told
    assert "Problem a process that only serves the engine failed" in told


def test_an_engine_that_cannot_be_served_is_a_problem_with_its_reason(store: Store) -> None:
    with pytest.raises(Problem, match="only serves the engine failed"):
        memory.peak_memory("onnxruntime", store.scratch(), {"threads": 1}, [{"image": np.ones(1)}], store.scratch())
