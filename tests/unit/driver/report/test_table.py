import io
from dataclasses import replace

import pytest

from petra_deploy.core.outcome import Failed, Figure, Front
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.report.table import interval, plain, print_table, rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_baseline_first_then_the_chosen_then_the_front(shipment: Shipment) -> None:
    good = shipment.chosen
    bad = replace(good, failed=Failed(job="build", kind="crash", reason="x"))
    front = Front(outcomes=(bad, good, replace(good, test=replace(shipment.score, split="test", n=50))), best=2)
    lines = rows(front, baseline_bytes=shipment.engine.bytes * 10)
    assert [line.name for line in lines] == ["baseline", "chosen", "front"]
    assert lines[0].latency == "4 ms"
    assert lines[0].metric == "accuracy 0.98"
    assert lines[1].strategy == "prune + quantize_inc"
    assert (lines[1].speedup, lines[1].smaller) == ("8.00x [7.80, 8.30]", "10.0x")
    assert (lines[1].drop, lines[1].rows) == ("1.00 [0.20, 1.90]", "test, 50 rows")


def test_a_figure_that_was_not_measured_says_so() -> None:
    assert interval(Figure(value=3.0, unit="ratio", origin="predicted"), "x") == "3.00x predicted"
    assert interval(Figure(value=None, unit="ms", note="needs 459")) == "n/a (needs 459)"


def test_piped_output_is_plain_and_aligned(shipment: Shipment) -> None:
    file = io.StringIO()
    print_table(Front(outcomes=(shipment.chosen,), best=0), notes=("few rows", "few rows"), file=file)
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert lines[-1] == "note: few rows"
    assert len(lines) == 4
    assert lines[0].index("speedup") == lines[2].index("8.00x")


def test_a_terminal_gets_the_same_cells(shipment: Shipment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = Terminal()
    print_table(Front(outcomes=(shipment.chosen,), best=0), file=file)
    for cell in ("baseline", "chosen", "8.00x [7.80, 8.30]", "test, 360 rows"):
        assert cell in file.getvalue()


def test_a_name_cannot_send_control_codes_to_the_terminal(shipment: Shipment) -> None:
    strategy = shipment.chosen.strategy
    evil = replace(strategy, steps=(replace(strategy.steps[0], technique="\x1b[2Jprune"),))
    text = plain(rows(Front(outcomes=(replace(shipment.chosen, strategy=evil),))))
    assert "\x1b" not in text


def test_an_empty_front_has_no_table() -> None:
    file = io.StringIO()
    print_table(Front(outcomes=()), file=file)
    assert file.getvalue() == ""
