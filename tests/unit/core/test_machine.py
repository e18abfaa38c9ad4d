import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from petra_deploy.core import files, machine
from petra_deploy.core.errors import BadInput
from petra_deploy.core.machine import CudaDevice
from petra_deploy.core.target import Target


def test_the_target_cpu_is_filled_in_from_this_machine() -> None:
    target = machine.resolve("cpu")
    assert (target.runtime, target.device) == ("onnxruntime", "cpu")
    assert target.instructions == machine.instructions()
    assert target.memory_gb == pytest.approx(machine.memory_bytes() / 2**30, abs=0.1)
    assert machine.present(target)


def test_memory_that_the_system_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 0)
    assert machine.resolve("cpu").memory_gb is None


def test_an_unknown_target_names_the_nearest_and_all_known() -> None:
    with pytest.raises(BadInput) as caught:
        machine.resolve("cpuu")
    assert "did you mean 'cpu'?" in caught.value.hint
    assert all(f" {name}" in caught.value.hint for name in machine.targets())


def test_a_target_may_be_a_file_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text('name = "board"\nruntime = "onnxruntime"\ndevice = "cpu"\nthreads = 4\n')
    assert machine.resolve(str(path)).threads == 4
    path.write_text('name = "board"\nruntime = "onnxruntime"\ndevice = "cpu"\nthreds = 4\n')
    with pytest.raises(BadInput, match="threds"):
        machine.resolve(str(path))
    with pytest.raises(BadInput, match="does not exist"):
        machine.resolve(str(tmp_path / "absent.toml"))


def test_a_target_that_is_not_here_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Target(name="other", runtime="onnxruntime", device="cpu", instructions=("avx2", "neon"))
    assert "lacks" in (machine.absent(other) or "")
    gpu = Target(name="t9", runtime="tensorrt", device="cuda", compute_capability="9.9")
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    assert machine.absent(gpu) == "needs a CUDA device, and there is none here"
    monkeypatch.setattr(machine, "cuda_devices", lambda: (CudaDevice("NVIDIA L4", "8.9", 24 << 30),))
    assert machine.absent(gpu) == "needs compute capability 9.9, and here is NVIDIA L4 (8.9)"
    assert not machine.present(gpu)


def test_a_target_without_a_backend_says_so() -> None:
    assert machine.unserved(Target(name="a", runtime="onnxruntime", device="cpu")) is None
    assert "runs on warp9" in (machine.unserved(Target(name="a", runtime="warp9", device="cpu")) or "")


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("Tesla T4", "7.5", ["t4"]),
        ("NVIDIA A10", "8.6", ["a10"]),
        ("NVIDIA A10G", "8.6", []),
        ("NVIDIA L4", "8.9", ["l4"]),
        ("NVIDIA L40S", "8.9", []),
        ("NVIDIA A100-SXM4-80GB", "8.0", ["a100"]),
        ("NVIDIA A100-SXM4-40GB", "8.0", []),
        ("NVIDIA H100 80GB HBM3", "9.0", ["h100"]),
        ("NVIDIA H100 PCIe", "9.0", []),
        ("NVIDIA H200", "9.0", ["h200"]),
        ("NVIDIA H200 NVL", "9.0", []),
        ("NVIDIA GeForce RTX 4090", "8.9", ["rtx-4090"]),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "8.9", []),
        ("NVIDIA Jetson AGX Orin Developer Kit", "8.7", ["orin-agx"]),
        ("NVIDIA Jetson Orin Nano Developer Kit", "8.7", ["orin-nano"]),
    ],
)
def test_a_device_is_the_target_whose_figures_describe_it_and_no_other(
    device: str, capability: str, expected: list[str]
) -> None:
    found = CudaDevice(device, capability, 0)
    assert [name for name in machine.targets() if machine.matches(machine.resolve(name), found)] == expected


class Driver:
    """A stand-in for libcuda with one device."""

    def __init__(self, name: bytes, capability: tuple[int, int], memory: int) -> None:
        self.name, self.capability, self.memory = name, capability, memory

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _: int) -> int:
        value._obj.value = self.capability[attribute - 75]
        return 0

    def cuDeviceGetName(self, name: Any, _: int, __: int) -> int:
        name.value = self.name
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, _: int) -> int:
        size._obj.value = self.memory
        return 0


@pytest.mark.parametrize(
    ("said", "board", "expected"),
    [
        (b"NVIDIA H100 80GB HBM3", "", "NVIDIA H100 80GB HBM3"),
        (b"Orin", "NVIDIA Jetson AGX Orin Developer Kit\0", "NVIDIA Jetson AGX Orin Developer Kit"),
        (b"NVIDIA A10", "Some Arm Server\0", "NVIDIA A10"),
    ],
)
def test_the_driver_names_the_devices_and_jetson_its_board(
    monkeypatch: pytest.MonkeyPatch, said: bytes, board: str, expected: str
) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: Driver(said, (9, 0), 80 << 30))
    monkeypatch.setattr(machine, "_read", lambda _: board)
    assert machine.cuda_devices.__wrapped__() == (CudaDevice(expected, "9.0", 80 << 30),)


def test_a_package_may_bring_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "__init__.py").touch()
    board = tmp_path / "boards" / "board.toml"
    board.write_text('name = "board"\nruntime = "onnxruntime"\ndevice = "cpu"\nthreads = 3\n')
    monkeypatch.syspath_prepend(tmp_path)
    points = (metadata.EntryPoint(name="boards", value="boards", group="petra_deploy.target"),)
    monkeypatch.setattr(machine.metadata, "entry_points", lambda group: points)
    assert machine.targets()["board"] == board
    assert machine.resolve("board").threads == 3
    board.rename(board.with_name("cpu.toml"))
    with pytest.raises(BadInput, match="two targets are called 'cpu'"):
        machine.targets()


def test_a_package_of_targets_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (metadata.EntryPoint(name="boards", value="no_such_package", group="petra_deploy.target"),)
    monkeypatch.setattr(machine.metadata, "entry_points", lambda group: points)
    with pytest.raises(BadInput, match="no_such_package"):
        machine.targets()


def test_the_fingerprint_is_plain_data_and_names_nobody() -> None:
    text = json.dumps(files.plain(machine.fingerprint()))
    assert json.loads(text)["versions"]["numpy"]
    assert os.uname().nodename not in text or os.uname().nodename in ("x86_64", "linux")
    assert str(Path.home()) + "/" not in text


def test_versions_of_packages_that_are_absent_are_left_out() -> None:
    assert set(machine.versions(("numpy", "no-such-package-anywhere"))) == {"numpy"}
