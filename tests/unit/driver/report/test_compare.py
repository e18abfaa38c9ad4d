"""A comparison in words: nothing of a stranger's name can break the table, the XML or the page."""

import xml.etree.ElementTree as Xml
from dataclasses import replace

import pytest

from petra_deploy.core.comparison import Comparison
from petra_deploy.core.outcome import Figure
from petra_deploy.core.verdict import judge, share
from petra_deploy.driver.report import compare as report
from tests.unit.core.test_verdict import ENGINE, comparison, rounds


@pytest.fixture
def made() -> Comparison:
    nasty = replace(ENGINE, name="a|b<script>`x`\x1b[31m@team", bytes=2000)
    found = comparison(rounds(1.05, 6), share(latency=0.05, size=0.1), new=nasty,
                       drop=Figure(value=0.3, unit="points", low=-0.2, high=0.8, n=100), metric="accuracy")  # fmt: skip
    return replace(found, verdicts=judge(found), warnings=("the host took 5% | of it",))


def test_the_table_has_a_line_a_gate_and_ends_with_the_verdict(made: Comparison) -> None:
    lines = report.table(made, ["layer1: slower"]).splitlines()
    assert lines[-1] == "verdict: fail"
    assert any(line.startswith("latency at batch 1, +5%") and "inconclusive" in line for line in lines)
    assert any(line.startswith("size, +10%") and "fail" in line for line in lines)
    assert any(line.startswith("accuracy, no gate") and "+0.30 points" in line for line in lines)
    assert "layer1: slower" in lines
    assert "\x1b" not in "".join(lines)


def test_markdown_is_a_table_that_a_name_cannot_leave(made: Comparison) -> None:
    text = report.markdown(made)
    assert "<script>" not in text
    assert "@team" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {6}
    assert "&#124;" in text


@pytest.mark.parametrize(("strict", "failures", "skipped"), [(False, 1, 1), (True, 2, 0)])
def test_junit_has_a_case_a_gate(made: Comparison, strict: bool, failures: int, skipped: int) -> None:
    root = Xml.fromstring(report.junit(made, strict=strict).split("\n", 1)[1])
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", str(failures), str(skipped))
    assert len(suite.findall("testcase/failure")) == failures
    assert len(suite.findall("testcase/skipped")) == skipped
