"""Words and exit codes of `petra-deploy refresh`; what it finds is tested where it is found."""

import json
import sys
import types
from typing import Any

import pytest

from petra_deploy.cli.main import run
from petra_deploy.core.advice import Advice, Trial, What

LINE = ("refresh", "b", "--with", "onnxruntime==1.99.0")


def install(monkeypatch: pytest.MonkeyPatch, advice: What) -> list[dict[str, Any]]:
    """A stand-in for petra_deploy.measuring, which gives `advice`; what it was called with."""
    calls: list[dict[str, Any]] = []

    def refresh(bundle: str, tried: str, **given: Any) -> Advice:
        calls.append({"bundle": bundle, "tried": tried, **given})
        return Advice(bundle=bundle, tried=tried, target="cpu", advice=advice, why="because", installed={}, versions={},
                      replayed=False, same_file=True, trial=Trial(broken="it"))  # fmt: skip

    module = types.ModuleType("petra_deploy.measuring")
    module.refresh = refresh  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "petra_deploy.measuring", module)
    return calls


@pytest.mark.parametrize("advice", ["keep", "upgrade", "search again"])
def test_it_is_advice_so_the_exit_code_is_0(
    advice: What, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, advice)
    assert run(LINE) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{advice}: because"
    assert run([*LINE, "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == advice


def test_json_is_all_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = install(monkeypatch, "keep")
    assert run([*LINE, "--json", "--data", "d.npz", "--time", "20m", "--rounds", "40", "--target", "cpu"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(Advice.__dataclass_fields__)
    calls[0].pop("on_event")
    assert calls == [{"bundle": "b", "tried": "onnxruntime==1.99.0", "data": "d.npz", "time": "20m", "rounds": 40,
                      "target": "cpu", "metric": None, "seed": 0}]  # fmt: skip


def test_the_version_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["refresh", "b"]) == 2
    assert "--with" in capsys.readouterr().err
