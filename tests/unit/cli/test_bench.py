"""The words and exit codes of `petra-deploy bench`; what it measures is tested where it is measured."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petra_deploy.cli.main import run
from petra_deploy.core.errors import BadInput
from petra_deploy.core.event import Event
from petra_deploy.core.profile import Profile
from tests.unit.driver.test_profiles import profile

Calls = list[dict[str, Any]]


@pytest.fixture
def made(tmp_path: Path) -> Profile:
    (tmp_path / "net.onnx").write_bytes(b"a model")
    return profile(tmp_path / "net.onnx")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, made: Profile) -> Calls:
    """A stand-in for petra_deploy.measuring, whose bench answers the same whatever it is asked."""
    calls: Calls = []

    def bench(**given: Any) -> Profile:
        given.pop("on_event")(Event(kind="stage", text="measuring"))
        calls.append(given)
        return made

    module = types.ModuleType("petra_deploy.measuring")
    vars(module).update(bench=bench, Result=type("Result", (), {}))
    monkeypatch.setitem(sys.modules, "petra_deploy.measuring", module)
    return calls


def test_options_arrive_under_the_names_of_the_api(api: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["bench", "net.onnx", "--target", "cpu", "--scenario", "all", "--batch", "1,8", "--threads", "1,2",
                "--time", "30s", "--latency-limit", "10ms", "--streams", "4", "--rounds", "3", "--data", "d.npz",
                "--input", "x:float32[1,3]", "--seed", "7", "--runtime", "onnxruntime"])  # fmt: skip
    assert code == 0
    assert api == [{
        "engine": "net.onnx", "target": "cpu", "runtime": "onnxruntime", "remote": None, "remote_python": None,
        "scenarios": ("single-stream", "multi-stream", "offline", "server"), "batches": (1, 8), "threads": (1, 2),
        "time": "30s", "latency_limit": "10ms", "streams": 4, "rounds": 3, "data": "d.npz",
        "inputs": ("x:float32[1,3]",), "seed": 7, "save": None,
    }]  # fmt: skip
    said = capsys.readouterr()
    assert "single-stream" in said.out
    assert "measuring" in said.err


def test_without_options_a_stream_and_all_rows_at_once_are_measured(api: Calls) -> None:
    assert run(["bench", "net.onnx"]) == 0
    assert (api[0]["scenarios"], api[0]["batches"], api[0]["threads"]) == (("single-stream", "offline"), (1, 16), ())


def test_json_is_the_profile_and_quiet_is_where_it_was_saved(
    api: Calls, made: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "net.onnx", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "petra-deploy/profile/1"
    assert said["measured"]["scenarios"][0]["latency"]["p99"]["high"] == made.measured.scenarios[0].latency.p99.high  # type: ignore[union-attr]
    assert run(["bench", "net.onnx", "--save", "p.json", "--quiet"]) == 0
    assert capsys.readouterr().out == "p.json\n"
    assert run(["bench", "net.onnx", "--save", "p.json"]) == 0
    assert capsys.readouterr().out.endswith("\nprofile: p.json\n")


@pytest.mark.parametrize("wrong", ["fast", "single-stream,single-stream", "", "all,server"])
def test_a_scenario_that_there_is_not_is_usage(api: Calls, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    assert run(["bench", "net.onnx", "--scenario", wrong]) == 2
    assert "choose of single-stream, multi-stream, offline, server; or all" in capsys.readouterr().err
    assert api == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latency_limit": "fast"}, "'fast' is not a latency"),
        ({"latency_limit": 0}, "is not a latency"),
        ({"rounds": 0}, "rounds of (0,) are not possible"),
        ({"threads": (2, 2)}, "threads of (2, 2) are not possible"),
        ({"batches": ()}, "no batch size"),
        ({"scenarios": "some"}, "is not a list of scenarios"),
        ({"save": "p.toml"}, "is not the name of a profile"),
        ({"data": "nowhere.npz"}, "nowhere.npz does not exist"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_starts(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    from petra_deploy import bench

    (tmp_path / "net.onnx").write_bytes(b"a model")
    with pytest.raises(BadInput) as caught:
        bench(tmp_path / "net.onnx", **given)
    assert said in caught.value.message


def test_a_latency_is_read_in_the_units_people_write() -> None:
    from petra_deploy.core.request import parse_milliseconds

    read: Callable[[Any], float] = parse_milliseconds
    assert [read(text) for text in ("10ms", "0.5s", "250us", "7", 7.5)] == [10.0, 500.0, 0.25, 7.0, 7.5]


@pytest.mark.parametrize("name", ["nothing.onnx", "net.pt", "net.plan"])
def test_what_cannot_be_measured_is_said(tmp_path: Path, name: str) -> None:
    from petra_deploy import bench

    if name != "nothing.onnx":
        (tmp_path / name).write_bytes(b"something")
    with pytest.raises(BadInput):
        bench(tmp_path / name)


def test_a_predicted_run_is_finished_not_benched_and_refuses_what_belongs_to_benching(tmp_path: Path) -> None:
    from petra_deploy import bench

    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BadInput, match="--save has no meaning for a predicted run"):
        bench(tmp_path, save="p.json")
    with pytest.raises(BadInput, match="holds no"):
        bench(tmp_path)
