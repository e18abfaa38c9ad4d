"""Words and exit codes of the command; what the verbs do is tested where it is done."""

import errno
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petra_deploy.cli.main import VERBS, run
from petra_deploy.core.errors import BadInput, Interrupted, MissingExtra, NotMet, OutOfDisk, PetraError, TargetAbsent
from petra_deploy.core.event import Event
from petra_deploy.core.folder import open_run
from petra_deploy.core.outcome import Front, Goal
from petra_deploy.core.request import Remote, Request
from petra_deploy.core.store import Store
from petra_deploy.core.workload import DataSource, ModelSource
from petra_deploy.driver.bundle.write import Shipment, write

Calls = list[dict[str, Any]]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Calls]:
    """Put a stand-in for petra_deploy.api in place: every verb answers (or raises) the same."""

    def install(answer: Any) -> Calls:
        calls: Calls = []

        def verb(*_: Any, **given: Any) -> Any:
            given.pop("on_event")(Event(kind="trial", text="prune", trial=3, of=12, seconds_left=100, best_speedup=4))
            calls.append(given)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        module = types.ModuleType("petra_deploy.api")
        for name in ("optimize", "apply", "inspect"):
            setattr(module, name, verb)
        monkeypatch.setitem(sys.modules, "petra_deploy.api", module)
        return calls

    return install


@pytest.fixture
def result(shipment: Shipment, store: Store, tmp_path: Path) -> types.SimpleNamespace:
    manifest = write(tmp_path / "out" / "bundle", shipment, store)
    front = Front(outcomes=(shipment.chosen,), best=0)
    return types.SimpleNamespace(bundle=tmp_path / "out" / "bundle", front=front, manifest=manifest, trials=(),
                                 out=tmp_path / "out")  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotMet("no strategy met the budget", "allow more"), 1),
        (BadInput("x.pt is a text file", "give a model"), 2),
        (TargetAbsent("no GPU here"), 3),
        (MissingExtra("tensorrt is missing"), 4),
        (OutOfDisk("disk full"), 75),
        (Interrupted("stopped"), 130),
    ],
)
def test_an_error_is_a_sentence_a_blank_line_and_a_hint(
    api: Callable[[Any], Calls], capsys: pytest.CaptureFixture[str], error: PetraError, code: int
) -> None:
    api(error)
    assert run(["optimize", "m.pt", "--quiet"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: {error.message}\n" + (f"\nhint: {error.hint}\n" if error.hint else "")


def test_ctrl_c_is_130(api: Callable[[Any], Calls]) -> None:
    api(KeyboardInterrupt())
    assert run(["optimize", "m.pt", "--quiet"]) == 130


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_with_debug(
    api: Callable[[Any], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    api(ZeroDivisionError("oops"))
    assert run(["optimize", "m.pt", "--quiet"]) == 70
    said = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oops" in said
    assert "Traceback" not in said
    assert run(["optimize", "m.pt", "--quiet", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_that_nobody_caught_is_still_75(api: Callable[[Any], Calls]) -> None:
    api(OSError(errno.ENOSPC, "No space left on device"))
    assert run(["optimize", "m.pt", "--quiet"]) == 75


def test_an_error_cannot_send_control_codes(api: Callable[[Any], Calls], capsys: pytest.CaptureFixture[str]) -> None:
    api(BadInput("layer \x1b]0;gotcha\x07 is odd"))
    run(["optimize", "m.pt", "--quiet"])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["optimise", "m.pt"], "did you mean 'optimize'"),
        (["optimize", "m.pt", "--targt", "cpu"], "--target"),
        (["optimize", "m.pt", "--time", "soon"], "not a time"),
        (["optimize", "m.pt", "--batch", "1,x"], "batch sizes"),
        (["optimize", "m.pt", "--trials", "0"], "--trials"),
        (["optimize", "m.pt", "--objective", "speed"], "'latency', 'throughput', 'size'"),
        (["optimize", "m.pt", "extra"], "extra"),
    ],
)
def test_usage_errors_are_2_and_name_what_is_wrong(
    capsys: pytest.CaptureFixture[str], line: list[str], said: str
) -> None:
    assert run(line) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "hint: " in err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"petra-deploy {verb}" in capsys.readouterr().out


def test_every_option_of_optimize_has_an_example_that_names_it() -> None:
    from petra_deploy.cli.optimize import command

    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert f"Example: {parameter.opts[0]}" in (parameter.help or ""), parameter.opts  # type: ignore[attr-defined]


def test_options_arrive_at_the_api_as_they_were_typed(api: Callable[[Any], Calls], result: Any) -> None:
    calls = api(result)
    line = "optimize m.pt --data d.npz --model n.py:f --input x:float32[1,3] --input y:int64[1] --max-drop 0.5 "
    line += "--time 20m --trials 12 --batch 4,1 --seed 3 --out o --device cpu --metric f1 --objective size --trust"
    line += " --runtime openvino"
    line += " --certify"
    line += " --with recover --without prune --without half"
    assert run([*line.split(), "--quiet"]) == 0
    assert calls == [{
        "model": "m.pt", "data": "d.npz", "train": None, "selection": None, "test": None, "model_factory": "n.py:f",
        "trust": True, "inputs": ("x:float32[1,3]", "y:int64[1]"), "metric": "f1", "target": "cpu", "max_drop": 0.5,
        "objective": "size", "trials": 12, "time": 1200.0, "sampler": "cma", "seed": 3, "device": "cpu",
        "batches": (4, 1), "out": "o", "storage": None, "resume": False, "require_measured": False,
        "runtime": "openvino",
        "remote": None, "remote_python": None,
        "certify": True, "with_techniques": ("recover",), "without_techniques": ("prune", "half"),
    }]  # fmt: skip


def test_json_is_one_object_the_manifest_plus_out(
    api: Callable[[Any], Calls], result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api(result)
    assert run(["optimize", "m.pt", "--json"]) == 0
    said = capsys.readouterr()
    manifest = json.loads((result.bundle / "manifest.json").read_text())
    assert json.loads(said.out) == {**manifest, "out": str(result.out)}
    assert said.err == "trial 3 of 12: prune (best 4.00x, 1m40s left)\n"


def test_the_table_ends_with_where_the_bundle_is(
    api: Callable[[Any], Calls], result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api(result)
    assert run(["optimize", "m.pt"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out.splitlines()[-1] == f"bundle: {result.bundle}"
    assert "8.00x [7.80, 8.30]" in said.out


def test_quiet_prints_the_path_of_the_bundle_alone(
    api: Callable[[Any], Calls], result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api(result)
    assert run(["optimize", "m.pt", "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{result.bundle}\n", "")


def test_resume_takes_the_runs_own_options_and_what_is_typed_now(
    api: Callable[[Any], Calls], result: Any, tmp_path: Path
) -> None:
    request = Request(
        model=ModelSource(path="/m.pt", factory="/net.py:f", trust=True), data=DataSource(path="/d.npz"),
        goal=Goal(max_drop=2.0), seed=5, remote=Remote(host="me@box"),
    )  # fmt: skip
    with open_run(tmp_path / "run", False) as folder:
        folder.begin(request)
    calls = api(result)
    assert run(["optimize", "--resume", "--out", str(tmp_path / "run"), "--trials", "40", "--quiet"]) == 0
    assert (calls[0]["model"], calls[0]["data"], calls[0]["seed"], calls[0]["max_drop"]) == ("/m.pt", "/d.npz", 5, 2.0)
    assert (calls[0]["trials"], calls[0]["resume"], calls[0]["out"]) == (40, True, str(tmp_path / "run"))
    assert (calls[0]["trust"], calls[0]["model_factory"]) == (False, None), "a folder cannot consent to run code"
    assert (calls[0]["remote"], calls[0]["remote_python"]) == (None, None), "nor to send the data somewhere"


def test_verify_opens_a_sound_bundle_and_is_1_for_a_changed_one(
    result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(result.bundle)]) == 0
    assert "as they were written" in capsys.readouterr().out
    (result.bundle / "README.md").write_text("other")
    assert run(["verify", str(result.bundle)]) == 1
