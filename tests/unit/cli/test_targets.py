"""The words and exit codes of `petra-deploy targets`."""

import json
from pathlib import Path

import pytest

from petra_deploy.cli.main import run
from petra_deploy.core import machine
from petra_deploy.core.machine import CudaDevice

BROKEN = 'name = "my"\nsummary = "mine"\nruntime = "onnxruntime"\ndevice = "cpu"\nmemory_gb = 8.0\n'


def test_every_known_target_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "validate"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: good" for name in machine.targets()]


def test_a_broken_file_is_2_with_what_is_wrong_and_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.toml"
    path.write_text(BROKEN)
    assert run(["targets", "validate", "cpu", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == f"cpu: good\n{path}: 1 wrong\n  memory_gb has no source: add it under [sources]\n"
    assert said.err.startswith(f"error: something is wrong in the file of {path}\n\nhint: ")
    assert run(["targets", "validate", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["targets"][0]["problems"] == [
        "memory_gb has no source: add it under [sources]"
    ]


def test_an_unknown_name_is_2_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("show", "validate"):
        assert run(["targets", verb, "orin-agy"]) == 2
        assert "did you mean 'orin-agx'?" in capsys.readouterr().err


def test_list_says_of_each_whether_it_is_here_and_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "cuda_devices", lambda: (CudaDevice("Tesla T4", "7.5", 15 << 30),))
    assert run(["targets", "list"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines()[1:]}
    assert rows.keys() == machine.targets().keys()
    assert rows["cpu"].endswith(" yes")
    assert rows["l4"].endswith(
        "no: needs a device called 'NVIDIA L4' of compute capability 8.9, and here is Tesla T4 (7.5)"
    )
    assert rows["t4"].endswith(" yes")
    assert "\x1b" not in said
    assert run(["targets", "list", "--json"]) == 0
    known = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["targets"]}
    assert known["cpu"]["here"]
    assert known["t4"]["here"]
    assert known["t4"]["target"]["memory_gb"] == 16


@pytest.mark.parametrize("name", [name for name in machine.targets() if name != "cpu"])
def test_show_gives_each_figure_with_its_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "no source given" not in shown
    for source in machine.resolve(name).sources.values():
        assert source in shown
    assert run(["targets", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


def test_show_says_what_was_read_from_this_machine_and_what_has_no_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["targets", "show", "cpu"])
    assert any(line.startswith("memory_gb") and line.endswith("read from this machine")
               for line in capsys.readouterr().out.splitlines())  # fmt: skip
    path = tmp_path / "my.toml"
    path.write_text(BROKEN)
    run(["targets", "show", str(path)])
    assert any(line.startswith("memory_gb") and line.endswith("no source given")
               for line in capsys.readouterr().out.splitlines())  # fmt: skip


def test_detect_names_the_device_and_its_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "cuda_devices", lambda: (CudaDevice("NVIDIA H100 80GB HBM3", "9.0", 80 << 30),))
    assert run(["targets", "detect"]) == 0
    said = capsys.readouterr().out
    assert "NVIDIA H100 80GB HBM3, compute capability 9.0, 80.0 GiB: target h100" in said
    assert machine.cpu_model() in said
    assert run(["targets", "detect", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["targets"] == ["h100"]


def test_a_file_that_cannot_be_written_is_2_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["targets", "detect", "--save", str(tmp_path / "mine.json")]) == 2
    assert "is not the name of a target's file" in capsys.readouterr().err


def test_no_device_is_said_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    run(["targets", "detect"])
    assert "CUDA devices  none" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["list", "show", "detect", "validate"])
def test_each_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", verb, "--help"]) == 0
    assert f"petra-deploy targets {verb}" in capsys.readouterr().out
