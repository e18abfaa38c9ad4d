"""Whether a target is here, and what a run does where it is not."""

from pathlib import Path

import pytest

from petra_deploy.core import ledger, machine
from petra_deploy.core.errors import BadInput, MissingExtra, TargetAbsent
from petra_deploy.core.machine import CudaDevice
from petra_deploy.core.outcome import ErrorBar
from petra_deploy.core.plan import Knob, Layout, Plan
from petra_deploy.core.strategy import Strategy
from petra_deploy.core.workload import Signature
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


def test_the_error_bar_of_a_ledger_is_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    assert "predicted from its data sheet, within a factor of 3;" in find("t4").sentence
    known = ErrorBar(latency=1.5, speedup=1.2, n=9, device="Tesla T4")
    monkeypatch.setattr(ledger, "error_bar", lambda target: known)
    place = find("t4")
    assert place.error == known
    assert "within a factor of 1.2, latencies of 1.5 (as 9 of 10 of the 9 that" in place.sentence


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


def test_a_runtime_of_the_target_may_be_named_for_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "versions", lambda packages: {"openvino": "1"} if "openvino" in packages else {})
    place = find("cpu", runtime="openvino")
    assert (place.target.runtime, place.target.precisions) == ("openvino", ("fp32", "int8"))
    assert place.other_runtimes == ()
    assert place.serving(Strategy()).runtime == "openvino"
    with pytest.raises(BadInput, match="cpu has no runtime 'tensorrt'") as caught:
        find("cpu", runtime="tensorrt")
    assert "onnxruntime, openvino" in caught.value.hint


def test_a_runtime_that_is_named_and_not_installed_is_4_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "versions", lambda packages: {})
    with pytest.raises(MissingExtra, match="openvino is not installed") as caught:
        find("cpu", runtime="openvino")
    assert caught.value.exit_code == 4
    assert "petra-deploy[openvino]" in caught.value.hint
    assert find("cpu").other_runtimes == ()


def test_a_strategy_may_have_a_runtime_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed", lambda runtime: True)
    place = find("cpu")
    assert place.other_runtimes == ("openvino",)
    assert place.serving(Strategy()) is place.target
    served = place.serving(Strategy(backend="openvino"))
    assert (served.runtime, served.other_runtimes) == ("openvino", {"onnxruntime": place.target.precisions})


def test_in_place_of_an_absent_target_no_other_runtime_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    place = find("t4", runtime="onnxruntime")
    assert place.predicted
    assert place.target.precisions == ("fp32", "fp16")
    assert find("t4").other_runtimes == ()


def test_what_stands_in_for_a_gpu_gets_none_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    place = find("t4")
    strategy = Strategy(runtime={"optimization_level": 5, "cuda_graph": "off"})
    assert place.settings(strategy) == {"optimization": "none"}
    layout = Layout(form="module", signature=Signature(inputs=(), outputs=()), parameters=0, bytes=0, operators={})
    plan = Plan(
        layout=layout,
        offers=(),
        runtime={"optimization_level": Knob.integer(3, 5)},
        unavailable={},
        train_rows=0,
        train_seconds_per_row=None,
        forward_seconds_per_row=0.0,
    )
    assert place.searchable(plan).runtime == {}
    assert find("cpu").searchable(plan) == plan
