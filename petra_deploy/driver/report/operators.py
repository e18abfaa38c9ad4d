"""What `petra-deploy profile-ops` prints: layers before and after, then in sentences what lost, and by what.

print(text(report))
"""

from collections.abc import Sequence

from petra_deploy.core.operators import Change, OpsProfile, OpsReport, Side
from petra_deploy.core.outcome import Figure
from petra_deploy.driver.layers import bounded
from petra_deploy.driver.report.table import columns, printable

_SHOWN = 15  # layers of the table
_SENTENCES = 10
_NONE = "-"


def text(report: OpsReport, *, every: bool = False) -> str:
    """`every`: all layers, not only those that take longest."""
    new, base = report.profiled.engine, report.profiled.base
    shown = report.changes if every else report.changes[:_SHOWN]
    parts = [table(shown, compared=base is not None)]
    if rest := report.changes[len(shown) :]:
        parts.append(f"and {len(rest)} layers that take less; --all shows them")
    parts += ["", *whole(report.base, base), *whole(report.engine, new)]
    if base is not None:
        parts += ["", *lost(report.changes)]
    parts += _section("stayed float:", report.stayed_float)
    parts += [f"warning: {warning}" for warning in report.profiled.warnings]
    return "\n".join(printable(line) if "\n" not in line else line for line in parts)


def table(changes: Sequence[Change], *, compared: bool) -> str:
    """A layer a line; microseconds a call, all that belongs to the layer, conversions too."""
    if not compared:
        head = ("layer", "operator", "precision", "us", "of it conversions")
        lines = [(_short(c.layer), *_side(c.new), _us(c.new.conversions) if c.new else _NONE) for c in changes]
        return columns([head, *lines])
    full = ("layer", "before", "", "us", "after", "", "us", "difference, us", "of it conversions")
    rows = []
    for c in changes:
        converts = _us(c.new.conversions) if c.new else _NONE
        rows.append((_short(c.layer), *_side(c.base), *_side(c.new), _difference(c), converts))
    return columns([full, *rows])


def whole(name: str, profile: OpsProfile | None) -> list[str]:
    """A sentence on one engine: what a call takes, and what of it no operator does."""
    if profile is None:
        return []
    share = profile.conversions_us / (profile.operators_us or 1.0)
    outside = f", {_us(profile.unattributed)} us are outside of operators" if profile.unattributed.known() > 0 else ""
    added = f"; {_us(profile.added)} us are taken off each operator for the profiler" if profile.added.known() else ""
    operators = f"{profile.operators_us:.0f} us, of it conversions {profile.conversions_us:.0f} us ({share:.0%})"
    return [
        f"{name}: a call takes {_us(profile.whole)} us, {_us(profile.profiled)} us with the profiler; its operators "
        f"{operators}{outside}{added}"
    ]


def lost(changes: Sequence[Change]) -> list[str]:
    """How many layers gained and lost, and in a sentence each which lost."""
    both = [c for c in changes if c.base and c.new]
    found = sorted((c for c in both if c.slower), key=lambda c: -c.difference.known())
    faster = sum(c.faster for c in both)
    counts = [f"{faster} of {len(both)} layers are faster, {len(found)} slower, "
              f"{len(both) - faster - len(found)} the same within their intervals"]  # fmt: skip
    for words, alone in (
        ("before", [c for c in changes if not c.new]), ("after", [c for c in changes if not c.base])
    ):  # fmt: skip
        if alone:
            known = [side.time.known() for c in alone if (side := c.base or c.new)]
            counts.append(f"{len(alone)} layers are there only {words}, {sum(known):.0f} us of a call")
    return [*counts, *_section("slower:", [c.sentence for c in found])]


def _section(head: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    more = len(sentences) - _SENTENCES
    return [head, *(f"  {one}" for one in sentences[:_SENTENCES]), *([f"  and {more} more"] if more > 0 else [])]


def _side(side: Side | None) -> tuple[str, str, str]:
    if side is None:
        return (_NONE, "", _NONE)
    return (_short(" + ".join(side.operators[:2]), 24), side.precision, _us(side.time))


def _difference(change: Change) -> str:
    return bounded(change.difference).replace(" us", "", 1) if change.difference.value is not None else _NONE


def _us(figure: Figure) -> str:
    value = figure.known()
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _short(text: str, width: int = 44) -> str:
    return text if len(text) <= width else "…" + text[-width + 1 :]
