"""What is wrong with a target's file is said in a sentence that names the place."""

from pathlib import Path

import pytest

from petra_deploy.core import catalogue, machine
from petra_deploy.core.machine import CudaDevice

GOOD = """
name = "board"
summary = "a board"
runtime = "tensorrt"
device = "cuda"
compute_capability = "8.9"
precisions = ["fp16", "int8"]
channel_step = 16
memory_gb = 24.0

[channel_steps]
fp16 = 8

[peaks_tflops]
fp16 = 121.0
int8 = 242.0

[other_runtimes]
onnxruntime = ["fp32"]

[runtime_versions]
tensorrt = [">=10.0,<11", ">=11.4.1"]

[sources]
compute_capability = "a page"
precisions = "a page"
channel_step = "a page"
channel_steps = "a page"
memory_gb = "a page"
"peaks_tflops.fp16" = "a page"
"peaks_tflops.int8" = "a page"
other_runtimes = "a page"
runtime_versions = "a page"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(text)
    return path


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    assert catalogue.problems(written(tmp_path, GOOD)) == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("memory_gb = 24.0", "memory_gb = ", "is not valid TOML"),
        ("memory_gb = 24.0", 'memory_gb = "much"', "memory_gb: input should be a valid number"),
        ("memory_gb = 24.0", "memory_gb = -1", "memory_gb: input should be greater than 0"),
        ("memory_gb = 24.0", "memory_gb = inf", "memory_gb: input should be less than"),
        ("memory_gb = 24.0", "memory = 24.0", "memory: unexpected keyword argument"),
        ('device = "cuda"\n', "", "device: field required"),
        ("int8 = 242.0", "int7 = 242.0", "peaks_tflops.int7"),
        ('"int8"]', '"int7"]', "precisions.1: input should be 'fp32'"),
        ('name = "board"', 'name = "bord"', "the name is 'bord' and the file is board.toml"),
        ('summary = "a board"', 'summary = " "', "summary is empty"),
        ('runtime = "tensorrt"', 'runtime = "tensort"', "unknown runtime 'tensort'; did you mean 'tensorrt'?"),
        ('memory_gb = "a page"\n', "", "memory_gb has no source"),
        ('"peaks_tflops.int8" = "a page"\n', "", "peaks_tflops.int8 has no source"),
        ('memory_gb = "a page"', 'memory_gb = ""', "the source of memory_gb is empty"),
        ('memory_gb = "a page"', 'memory_gb = "a page"\npower_w = "a page"', "a source for power_w, which the file"),
        ('["fp16", "int8"]', '["int8"]', "peaks_tflops names fp16, which is not among the precisions"),
        ('["fp16", "int8"]', '["int8"]', "channel_steps names fp16, which is not among the precisions"),
        ('["fp16", "int8"]', '["fp16", "int8", "int8"]', "precisions must name at least one precision, and each once"),
        ('["fp16", "int8"]', '["fp16", "int8", "fp4"]', "fp4 needs compute capability 10.0, and this has 8.9"),
        ("fp16 = 8\n", "fp16 = 12\n", "channel_step 16 is no multiple of channel_steps.fp16, 12"),
        ('"8.9"', '"sm89"', "compute_capability 'sm89' is not of the form"),
        ('compute_capability = "8.9"\n', "", "a CUDA target needs a compute_capability"),
        ('device = "cuda"', 'device = "cpu"', "a processor has no compute_capability"),
        ('device = "cuda"', 'device = "cuda"\ninstructions = ["avx2"]', "instructions are of a processor"),
        ('device = "cuda"', 'device = "cuda"\ninstructions = ["avx-512"]', "unknown instruction set 'avx-512'"),
        ('device = "cuda"', 'device = "cuda"\ndetect = true', "only a processor can be detected"),
        ('">=11.4.1"', '"11.4.1"', "runtime_versions.tensorrt: '11.4.1' is not a range"),
        ('tensorrt = [">', 'openvino = [">', "runtime_versions names openvino, which is not a runtime of this target"),
        ('onnxruntime = ["fp32"]', 'tensorrt = ["fp32"]', "other_runtimes repeats tensorrt"),
    ],
)
def test_one_fault_is_said_and_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    found = catalogue.problems(written(tmp_path, GOOD.replace(old, new, 1)))
    assert any(said in sentence for sentence in found), found


def test_a_file_that_is_not_there_is_a_problem_too(tmp_path: Path) -> None:
    assert catalogue.problems(tmp_path / "absent.toml") == (f"{tmp_path / 'absent.toml'} does not exist",)


def test_a_claim_is_whatever_does_not_say_which_target_it_is() -> None:
    assert catalogue.claims({"name": "x", "detect": True, "memory_gb": 8.0, "peaks_tflops": {"int8": 1.0}}) == {
        "memory_gb", "peaks_tflops.int8",
    }  # fmt: skip


def test_a_broken_file_does_not_hide_the_other_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"board": written(tmp_path, "name = 1"), "cpu": machine.targets()["cpu"]}
    monkeypatch.setattr(machine, "targets", lambda: paths)
    board, cpu = catalogue.entries()
    assert board.target is None
    assert "name: input should be a valid string" in (board.absent or "")
    assert cpu.here


def test_this_machine_is_described_with_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_devices", lambda: (CudaDevice("NVIDIA L4", "8.9", 24 << 30),))
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "vnni"))
    found = catalogue.detect()
    assert found.instructions == ("avx2", "vnni")
    assert [(device.name, device.targets) for device in found.devices] == [("NVIDIA L4", ("l4",))]
    assert {"cpu", "cpu-avx2", "cpu-vnni"} <= set(found.here)
    assert found.absent["cpu-amx"] == "needs avx512, amx, which this processor lacks"
    assert "here is NVIDIA L4 (8.9)" in found.absent["h100"]
    assert sorted((*found.here, *found.absent)) == sorted(machine.targets())
