"""What `targets` shows: the known targets as a table, one with its sources, this machine, and what is wrong."""

from collections.abc import Iterator, Mapping, Sequence

from petra_deploy.core.catalogue import IDENTITY, Detected, Entry
from petra_deploy.core.files import plain
from petra_deploy.core.outcome import Attained
from petra_deploy.core.target import Target
from petra_deploy.driver.report.table import columns, printable

_HEAD = ("name", "what it is", "runtime", "precisions", "here")


def table(entries: Sequence[Entry]) -> str:
    """A line a target: what it is, and whether this machine is it."""
    rows = [_HEAD]
    for entry in entries:
        here = "yes" if entry.here else f"no: {entry.absent}"
        known = entry.target
        rows.append(
            (entry.name, known.summary, known.runtime, " ".join(known.precisions), here)
            if known
            else (entry.name, "", "", "", here)
        )
    return "\n".join(map(printable, columns(rows).splitlines()))


def page(target: Target, absent: str | None) -> str:
    """Everything that the target says, a line each, with its source."""
    return "\n".join(map(printable, _page(target, absent)))


def detected(found: Detected) -> str:
    """This machine, and the targets that it is and is not."""
    return "\n".join(map(printable, _detected(found)))


def rates(found: Attained) -> str:
    """What the processor attains, a line a rate."""
    lines = [f"attained      on {found.graphs} small graphs, whose times these rates give within "
             f"{found.median_error:.0%} (median)"]  # fmt: skip
    for title, unit, table in (
        ("computing", "10^9 operations/s", found.attained_gops), ("moving", "GB/s", found.attained_gb_s),
        ("starting", "us", found.operator_us),
    ):  # fmt: skip
        lines += ["", *columns([(title, unit), *((key, f"{rate:,.4g}") for key, rate in table.items())]).splitlines()]
    return "\n".join(map(printable, lines))


def checked(problems: Mapping[str, Sequence[str]]) -> str:
    """A line a target, and below it what is wrong with it."""
    lines = []
    for name, found in problems.items():
        lines.append(f"{name}: {'good' if not found else f'{len(found)} wrong'}")
        lines += [f"  {problem}" for problem in found]
    return "\n".join(map(printable, lines))


def _page(target: Target, absent: str | None) -> Iterator[str]:
    yield f"{target.name}: {target.summary}"
    yield f"here: no, it {absent}" if absent else "here: yes"
    yield ""
    rows = []
    for field, value in plain(target).items():
        if field in ("name", "summary", "sources") or value in (None, [], {}, False):
            continue
        for name, single in value.items() if isinstance(value, dict) else [("", value)]:
            key = f"{field}.{name}" if name else field
            rows.append((key, _text(single), _source(target, field, key)))
    yield from columns([("figure", "value", "source"), *rows]).splitlines()


def _source(target: Target, field: str, key: str) -> str:
    if said := target.sources.get(key) or target.sources.get(field):
        return said
    if target.detect and field in ("instructions", "memory_gb"):
        return "read from this machine"
    if field in IDENTITY:
        return ""
    return "the default" if getattr(target, field) == getattr(Target, field, None) else "no source given"


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)


def _detected(found: Detected) -> Iterator[str]:
    yield f"processor     {found.cpu}, {found.architecture}"
    yield f"instructions  {' '.join(found.instructions) or 'none that matter here'}"
    yield f"cores         {found.cores}, of which this process may use {found.usable_cores}"
    yield f"memory        {found.memory_bytes / 2**30:.1f} GiB"
    for device in found.devices:
        named = f"target {', '.join(device.targets)}" if device.targets else "no target describes it"
        size = f"{device.memory_bytes / 2**30:.1f} GiB"
        yield f"CUDA device   {device.name}, compute capability {device.compute_capability}, {size}: {named}"
    if not found.devices:
        yield "CUDA devices  none"
    yield ""
    yield f"targets here  {', '.join(found.here) or 'none'}"
    yield "not here"
    for why in dict.fromkeys(found.absent.values()):
        yield f"  {', '.join(name for name, reason in found.absent.items() if reason == why)}: {why}"
