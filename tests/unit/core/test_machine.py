import json
import os
from pathlib import Path

import pytest

from petra_deploy.core import files, machine
from petra_deploy.core.errors import BadInput
from petra_deploy.core.target import Target


def test_the_target_cpu_is_filled_in_from_this_machine() -> None:
    target = machine.resolve("cpu")
    assert (target.runtime, target.device) == ("onnxruntime", "cpu")
    assert target.instructions == machine.instructions()
    assert target.memory_gb == pytest.approx(machine.memory_bytes() / 2**30, abs=0.1)
    assert machine.present(target)


def test_an_unknown_target_names_the_nearest_and_all_known() -> None:
    with pytest.raises(BadInput) as caught:
        machine.resolve("cpuu")
    assert "did you mean 'cpu'?" in caught.value.hint
    assert "known: cpu" in caught.value.hint


def test_a_target_may_be_a_file_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text('name = "board"\nruntime = "onnxruntime"\ndevice = "cpu"\nthreads = 4\n')
    assert machine.resolve(str(path)).threads == 4
    path.write_text('name = "board"\nruntime = "onnxruntime"\ndevice = "cpu"\nthreds = 4\n')
    with pytest.raises(BadInput, match="threds"):
        machine.resolve(str(path))
    with pytest.raises(BadInput, match="does not exist"):
        machine.resolve(str(tmp_path / "absent.toml"))


def test_a_target_that_is_not_here_says_what_is_missing() -> None:
    gpu = Target(name="t9", runtime="tensorrt", device="cuda", compute_capability="99.0")
    assert "t9" in (machine.absent(gpu) or "")
    assert not machine.present(gpu)
    other = Target(name="other", runtime="onnxruntime", device="cpu", instructions=("avx2", "neon"))
    assert "lacks" in (machine.absent(other) or "")


def test_the_fingerprint_is_plain_data_and_names_nobody() -> None:
    text = json.dumps(files.plain(machine.fingerprint()))
    assert json.loads(text)["versions"]["numpy"]
    assert os.uname().nodename not in text or os.uname().nodename in ("x86_64", "linux")
    assert str(Path.home()) + "/" not in text


def test_versions_of_packages_that_are_absent_are_left_out() -> None:
    assert set(machine.versions(("numpy", "no-such-package-anywhere"))) == {"numpy"}
