"""What stands around the loop: the device's lock, the core, the state of the machine."""

import os
import subprocess
import sys
from pathlib import Path

from petra_deploy.worker.measure import preflight
from petra_deploy.worker.measure.lock import exclusive

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
