"""Whether a target is here, and what a run does where it is not."""

from pathlib import Path

import pytest

from petra_deploy.core import machine
from petra_deploy.core.errors import TargetAbsent
from petra_deploy.core.machine import CudaDevice
from petra_deploy.driver.place import find


def test_what_is_here_is_measured() -> None:
    place = find("cpu", require_measured=True)
    assert not place.predicted
    assert place.at_hand is place.target


def test_a_gpu_that_is_not_here_is_predicted_and_the_processor_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    place = find("t4")
    assert place.predicted
    assert (place.target.runtime, place.target.device) == ("tensorrt", "cuda")
    assert (place.at_hand.runtime, place.at_hand.device) == ("onnxruntime", "cpu")
    assert place.sentence.startswith("t4 is not here (it needs a CUDA device, and there is none here)")
    assert "predicted" in place.sentence


def test_a_gpu_that_is_here_without_a_backend_is_predicted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", lambda: (CudaDevice("Tesla T4", "7.5", 15 << 30),))
    assert not find("t4").predicted
    monkeypatch.setattr("petra_deploy.core.registry.names", lambda kind: ("onnxruntime",))
    assert find("t4").why == "runs on tensorrt, for which there is no backend yet"


def test_with_require_measured_it_is_3_with_three_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    with pytest.raises(TargetAbsent, match="t4 is not here, and --require-measured was given") as caught:
        find("t4", require_measured=True)
    assert caught.value.exit_code == 3
    for way in ("on a machine that has it", "leave out --require-measured", "--target cpu"):
        assert way in caught.value.hint


def test_what_nothing_is_known_of_cannot_be_predicted(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('name = "odd"\nruntime = "onnxruntime"\ndevice = "cuda"\ncompute_capability = "99.9"\n')
    with pytest.raises(TargetAbsent, match="has no peaks and bandwidth to predict from") as caught:
        find(str(path))
    assert caught.value.exit_code == 3
