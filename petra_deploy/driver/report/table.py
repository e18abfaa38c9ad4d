"""The small table at the end of a run: baseline, chosen, front.

    print_table(front, baseline_bytes=44_727_185, notes=manifest.notes, file=sys.stdout)

Drawn with rich where `file` is a terminal, plain aligned text elsewhere. Every figure that was
not measured says what it is, and every drop says on which rows.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TextIO

from petra_deploy.core.outcome import Figure, Front, Measurement, Outcome, Score

HEAD = ("", "strategy", "latency p50", "speedup", "smaller", "metric", "drop, points", "on")


@dataclass(frozen=True)
class Row:
    """One line, as text: astuple() is in the order of `HEAD`."""

    name: str
    strategy: str
    latency: str
    speedup: str
    smaller: str
    metric: str
    drop: str
    rows: str


def rows(front: Front, *, baseline_bytes: int | None = None) -> list[Row]:
    """The baseline as measured beside the chosen one, then the chosen, then the rest of the front."""
    good = [(index, outcome) for index, outcome in enumerate(front.outcomes) if outcome.ok]
    if not good:
        return []
    good.sort(key=lambda pair: pair[0] != front.best)
    made = [_baseline_row(good[0][1])]
    for index, outcome in good:
        made.append(_row("chosen" if index == front.best else "front", outcome, baseline_bytes))
    return made


def print_table(front: Front, *, baseline_bytes: int | None = None, notes: Sequence[str] = (), file: TextIO) -> None:
    lines = rows(front, baseline_bytes=baseline_bytes)
    if lines and file.isatty():
        _print_rich(lines, file)
    elif lines:
        print(plain(lines), file=file)
    for note in dict.fromkeys(notes):
        print(f"note: {printable(note)}", file=file)


def plain(lines: Sequence[Row]) -> str:
    """The table without colour."""
    return columns([HEAD, *(astuple(line) for line in lines)])


def columns(cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def interval(figure: Figure, unit: str = "") -> str:
    """ "8.31x [8.02, 8.57]"; with its origin where it was not measured, "n/a" where it is unknown."""
    if figure.value is None:
        return f"n/a ({figure.note})" if figure.note else "n/a"
    text = f"{figure.value:.2f}{unit}"
    if figure.low is not None and figure.high is not None:
        text += f" [{figure.low:.2f}, {figure.high:.2f}]"
    return text if figure.origin == "measured" else f"{text} {figure.origin}"


def printable(text: str) -> str:
    """`text` without control characters: names come from strangers' files."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _baseline_row(beside: Outcome) -> Row:
    measured, score = beside.measurement, beside.test or beside.score
    if measured is None or score is None:
        raise ValueError("only a measured outcome has a row")
    value = score.value if score.baseline is None else score.baseline
    return Row("baseline", "as it came", _latency(measured.baseline[0].p50), "1.00x", "1.0x",
               f"{printable(score.metric)} {value:.4g}", "0.00", _rows(score))  # fmt: skip


def _row(name: str, outcome: Outcome, baseline_bytes: int | None) -> Row:
    measured, score, engine = outcome.measurement, outcome.test or outcome.score, outcome.engine
    if measured is None or score is None:
        raise ValueError("only a measured outcome has a row")
    smaller = f"{baseline_bytes / engine.bytes:.1f}x" if engine and baseline_bytes else ""
    drop = interval(score.drop) if score.drop else "0.00"
    return Row(name, printable(outcome.strategy.describe()), _latency(measured.candidate[0].p50),
               _speedup(measured), smaller, f"{printable(score.metric)} {score.value:.4g}", drop,
               _rows(score))  # fmt: skip


def _speedup(measured: Measurement) -> str:
    """Over FP32; on a GPU never alone: over FP16 beside it."""
    text = interval(measured.speedup, "x")
    return f"{text} ({measured.over_half[0].known():.2f}x over FP16)" if measured.over_half else text


def _latency(figure: Figure) -> str:
    if figure.value is None:
        return "n/a"
    text = f"{figure.value:.4g} {figure.unit}"
    return text if figure.origin == "measured" else f"{text} {figure.origin}"


def _rows(score: Score) -> str:
    return f"{score.split}, {score.n} rows"


def _print_rich(lines: Sequence[Row], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in HEAD:
        table.add_column(head, overflow="fold")
    for line in lines:
        style = "bold green" if line.name == "chosen" else ""
        table.add_row(*(Text(cell, style=style) for cell in astuple(line)))
    Console(file=file).print(table)
