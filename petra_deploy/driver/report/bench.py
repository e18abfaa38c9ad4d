"""A profile as a table: tails as upper bounds, "n/a (needs 459)" where there are too few calls, and what it was on.

print(table(profile))
"""

from collections.abc import Iterator, Sequence

from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import Benched, Profile, Scenario
from petra_deploy.driver.report.table import columns, printable

HEAD = ("scenario", "batch", "threads", "p50", "p90", "p95", "p99", "p99.9", "first call", "rows/s")


def table(profile: Profile) -> str:
    return "\n".join(map(printable, _lines(profile)))


def upper(figure: Figure | None) -> str:
    """ "<= 1.32 ms", the bound that holds at 99%; "n/a (needs 459)"."""
    if figure is None:
        return ""
    return _unknown(figure) if figure.high is None else f"<= {figure.high:.3g} {figure.unit}"


def middle(figure: Figure | None) -> str:
    """ "1.21 ms", and what it is worth where there is no bound."""
    if figure is None:
        return ""
    return _unknown(figure) if figure.value is None else f"{figure.value:.3g} {figure.unit}"


def _lines(profile: Profile) -> Iterator[str]:
    engine, measured = profile.engine, profile.measured
    versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items()) or engine.runtime
    yield f"{engine.name} on {profile.target}: {versions}, {engine.bytes / 1e6:.3g} MB"
    yield machine(measured.machine)
    yield ""
    yield from columns([HEAD, *map(_row, measured.scenarios)]).splitlines()
    yield ""
    yield from columns(list(_beside(measured))).splitlines()
    for warning in dict.fromkeys(measured.warnings):
        yield f"warning: {warning}"


def machine(said: dict[str, object]) -> str:
    """The fingerprint in a line."""
    flags, gpus, memory = said.get("instructions"), said.get("gpus"), said.get("memory_bytes")
    parts = [
        *(gpus if isinstance(gpus, list | tuple) else ()),
        f"{said.get('cpu')} ({' '.join(flags) if isinstance(flags, list | tuple) else ''})",
        f"{said.get('affinity')} of {said.get('cores')} cores",
        f"{memory / 2**30:.1f} GiB" if isinstance(memory, int | float) else "",
        "a virtual machine" if said.get("virtual") else "",
        f"governor {said.get('governor')}", str(said.get("system")), f"Python {said.get('python')}",
    ]  # fmt: skip
    return ", ".join(str(part) for part in parts if part)


def _row(one: Scenario) -> Sequence[str]:
    rate = one.throughput
    tail = one.latency
    tails = ["", "", "", "", "", ""]
    if tail is not None:
        tails = [middle(tail.p50), *map(upper, (tail.p90, tail.p95, tail.p99, tail.p999)), middle(tail.first)]
    return (one.name, str(one.batch), str(one.threads), *tails, "" if rate is None else _rate(rate))


def _beside(measured: Benched) -> Iterator[tuple[str, str]]:
    for one in measured.scenarios:
        if one.name == "server" and one.throughput is not None:
            yield "server", f"{one.threads} thread(s): {_rate(one.throughput)} rows/s: {one.throughput.note}"
    if (cold := measured.cold) is not None:
        yield (
            "cold start",
            (
                f"{middle(cold.total)} to the first answer, of which opening {middle(cold.load)}, the first call "
                f"{middle(cold.first)}; {cold.total.n} starts, files in the page cache"
            ),
        )
    if measured.peak_memory is not None:
        yield "peak memory", f"{measured.peak_memory.known() / 1e6:.0f} MB, of a process that only serves"
    known = [one for one in measured.scenarios if one.energy is not None]
    for one in known:
        yield (
            "energy",
            f"{middle(one.energy)} a row, {one.name}, batch {one.batch}: {one.energy.note if one.energy else ''}",
        )
    if not known and measured.sittings:
        yield "energy", f"n/a: {str(measured.sittings[0].get('energy', '')).removeprefix('energy is not known: ')}"
    yield "fed with", "made-up rows" if measured.inputs == "random" else "rows of the data"


def _rate(figure: Figure) -> str:
    if figure.value is None:
        return f"n/a ({' '.join(figure.note.split()[:2]).rstrip(',')})" if figure.note.startswith("needs") else "n/a"
    text = _number(figure.value)
    return (
        text if figure.low is None or figure.high is None else f"{text} [{_number(figure.low)}, {_number(figure.high)}]"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _unknown(figure: Figure) -> str:
    return f"n/a ({figure.note.partition(' that are')[0]})" if figure.note else "n/a"
