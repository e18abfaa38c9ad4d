"""A measured processor becomes a target's file that says when, where and by what."""

from pathlib import Path
from typing import get_args

import pytest

from petra_deploy.core import catalogue, machine
from petra_deploy.core.errors import BadInput
from petra_deploy.core.machine import resolve
from petra_deploy.core.outcome import Attained
from petra_deploy.core.target import Computing, Moving, Starting
from petra_deploy.driver import rates
from petra_deploy.driver.place import find
from petra_deploy.driver.report import targets

ATTAINED = Attained(
    attained_gops=dict.fromkeys(get_args(Computing), 100.0),
    attained_gb_s=dict.fromkeys(get_args(Moving), 20.0),
    operator_us=dict.fromkeys(get_args(Starting), 0.5),
    graphs=3, median_error=0.05,
)  # fmt: skip


def written(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    rates.save(path, rates.described(resolve("cpu"), ATTAINED))
    return path


def test_the_file_is_valid_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert catalogue.problems(path) == ()
    found = resolve(str(path))
    assert (found.name, found.detect, found.attained) == ("mine", False, True)
    assert found.instructions == machine.instructions()
    assert found.attained_gops == ATTAINED.attained_gops
    source = found.sources["attained_gops"]
    assert source.startswith("measured on 2")
    assert machine.cpu_model() in source
    assert source.endswith("by petra-deploy targets detect --measure")
    assert find(str(path)).predicted is False


def test_on_another_machine_it_is_predicted_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(machine, "instructions", tuple)
    place = find(str(path))
    assert place.predicted
    assert "predicted from its rates, within a factor of 3;" in place.sentence


def test_a_rate_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace('"weights" = 20.0\n', ""))
    assert catalogue.problems(path) == (
        "attained_gb_s.weights missing: attained rates are used together; "
        "`petra-deploy targets detect --save FILE.toml` measures them all",
    )
    monkeypatch.setattr(machine, "instructions", tuple)
    with pytest.raises(BadInput.__base__, match=r"its file lacks attained_gb_s\.weights to predict from"):  # type: ignore[arg-type]
        find(str(path))


def test_where_it_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not the name of a target's file"):
        rates.writable(tmp_path / "mine.json")
    with pytest.raises(BadInput, match="does not exist"):
        rates.writable(tmp_path / "nowhere" / "mine.toml")


def test_what_is_shown_has_every_rate() -> None:
    shown = targets.rates(ATTAINED)
    assert "on 3 small graphs, whose times these rates give within 5% (median)" in shown
    rows = [line.split() for line in shown.splitlines()]
    for table, rate in ((ATTAINED.attained_gops, "100"), (ATTAINED.attained_gb_s, "20"), (ATTAINED.operator_us, "0.5")):
        assert all([key, rate] in rows for key in table)


def test_text_is_written_so_that_toml_reads_it(tmp_path: Path) -> None:
    from dataclasses import replace

    odd = 'a "quoted"\\ name\x7f\té'
    rates.save(tmp_path / "mine.toml", replace(rates.described(resolve("cpu"), ATTAINED), summary=odd))
    assert resolve(str(tmp_path / "mine.toml")).summary == odd
