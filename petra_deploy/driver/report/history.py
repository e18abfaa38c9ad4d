"""What `bench --history` shows: by engine and machine, a line a series and a line a change.

print(text(history))
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from petra_deploy.core.outcome import Figure
from petra_deploy.driver.report.table import columns, printable

if TYPE_CHECKING:
    from petra_deploy.driver.history import Change, History, Series

_HEAD = ("", "profiles", "last", "changes")


def text(history: "History") -> str:
    return "\n".join(printable(line) for line in _lines(history))


def _lines(history: "History") -> Iterator[str]:
    groups: dict[str, list[Series]] = {}
    for series in history.series:
        groups.setdefault(f"{series.engine} on {series.target}; {series.machine}", []).append(series)
    for title, members in groups.items():
        yield title
        for row in columns([_HEAD, *map(_row, members)]).splitlines():
            yield f"  {row}"
        for series in members:
            for change in series.changes:
                yield f"  {series.what}: {_change(change, series.more_is_better)}"
                for cause in change.with_it:
                    yield f"    with it: {cause}"
        yield ""
    for file, why in history.left_out.items():
        yield f"left out: {file}: {why}"
    yield f"{history.profiles} profiles. A change is a place to look at, no verdict: `petra-deploy compare` gives one"


def _row(series: "Series") -> tuple[str, ...]:
    found = f"needs {series.needs} profiles" if series.needs else str(len(series.changes))
    return series.what, str(series.count), shown(series.value), found


def _change(change: "Change", more_is_better: bool) -> str:
    word = "better" if (change.change > 0) == more_is_better else "worse"
    return (f"{change.created} ({change.file}): {shown(change.before)} -> {shown(change.after)}, "
            f"{change.change:+.1%}, {word}, p {change.p:.1e}")  # fmt: skip


def shown(figure: Figure) -> str:
    """Four digits and the unit; bytes in MiB."""
    value, unit = figure.known(), {"ratio": "", "bytes": " MiB"}.get(figure.unit, f" {figure.unit}")
    if figure.unit == "bytes":
        value /= 2**20
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 6)}f}{unit}"
