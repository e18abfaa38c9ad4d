"""A comparison for people and for CI: a table, Markdown for a pull request, JUnit XML.

print(table(comparison))
Path("gate.xml").write_text(junit(comparison, strict=False))
"""

import xml.etree.ElementTree as Xml
from collections.abc import Sequence
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.comparison import Comparison, Verdict
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import EngineFacts
from petra_deploy.core.verdict import overall
from petra_deploy.driver.report.table import columns, printable

_MARKS = {"pass": "✅ pass", "fail": "❌ **fail**", "inconclusive": "⚠️ inconclusive"}


def table(comparison: Comparison, explained: Sequence[str] = ()) -> str:
    lines = [f"{_name(comparison.new)} against {_name(comparison.base)} on {comparison.target}", ""]
    cells = [("gate", "new / base", "interval", "verdict", ""), *(_cells(v) for v in comparison.verdicts)]
    if comparison.drop is not None and not any(v.gate.what == "metric" for v in comparison.verdicts):
        cells.append((f"{comparison.metric}, no gate", *_figures(comparison.drop, points=True), "", ""))
    lines += [columns(cells), "", *(f"warning: {printable(text)}" for text in comparison.warnings)]
    lines += [printable(text) for text in explained]
    return "\n".join([*lines, f"verdict: {overall(comparison.verdicts)}"])


def markdown(comparison: Comparison, explained: Sequence[str] = ()) -> str:
    """For the comment of a pull request or merge request."""
    verdict = overall(comparison.verdicts)
    lines = [
        f"### petra-deploy: {_MARKS[verdict]}", "",
        f"{_cell(_name(comparison.new))} against {_cell(_name(comparison.base))} on {_cell(comparison.target)}"
        f"{', measured in turns' if comparison.paired else ', from records'}", "",
        "| gate | new / base | interval | verdict | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for v in comparison.verdicts:
        what, value, interval, _, why = _cells(v)
        lines.append(f"| {what} | {value} | {interval} | {_MARKS[v.verdict]} | {_cell(why)} |")
    if comparison.drop is not None and not any(v.gate.what == "metric" for v in comparison.verdicts):
        value, interval = _figures(comparison.drop, points=True)
        lines.append(f"| {_cell(comparison.metric)}, no gate | {value} | {interval} | | |")
    lines += ["", *(f"- {_cell(text)}" for text in comparison.warnings)]
    if explained:
        lines += ["", "What got slower:", "", *(f"- {_cell(text)}" for text in explained)]
    rounds = max((v.figure.n for v in comparison.verdicts if v.gate.what == "latency"), default=0)
    cpu = comparison.machine.get("cpu", "this machine")
    lines += ["", f"<sub>{rounds} rounds of fresh sessions on {_cell(str(cpu))}; "
              f"{_versions(comparison)}; intervals hold together at 95%, however early one looks</sub>"]  # fmt: skip
    return "\n".join(lines) + "\n"


def junit(comparison: Comparison, *, strict: bool) -> str:
    """One test case a gate: an inconclusive one is skipped, or with `strict` failed."""
    verdicts = comparison.verdicts
    failed = [v for v in verdicts if v.verdict == "fail" or (strict and v.verdict == "inconclusive")]
    skipped = [v for v in verdicts if v.verdict == "inconclusive" and not strict]
    counts = {"tests": str(len(verdicts)), "failures": str(len(failed)), "skipped": str(len(skipped))}
    root = Xml.Element("testsuites", counts)
    suite = Xml.SubElement(root, "testsuite", {"name": "petra-deploy compare", "errors": "0", **counts})
    for v in verdicts:
        what, value, interval, _, why = _cells(v)
        case = Xml.SubElement(suite, "testcase", {"classname": printable(_name(comparison.new)), "name": what})
        if v in failed:
            Xml.SubElement(case, "failure", {"type": v.verdict, "message": printable(f"{value} {interval}: {why}")})
        elif v in skipped:
            Xml.SubElement(case, "skipped", {"message": printable(f"inconclusive: {value} {interval}: {why}")})
        else:
            Xml.SubElement(case, "system-out").text = printable(f"{value} {interval}: {why}")
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write(path: str, text: str) -> None:
    """Into a new or old file; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(Path(path), text)


def _cells(v: Verdict) -> tuple[str, str, str, str, str]:
    gate = v.gate
    limit = f"{gate.limit:.4g} points" if gate.what == "metric" else f"{gate.limit:.4%}".rstrip("0%").rstrip(".") + "%"
    what = f"latency at batch {gate.batch}" if gate.what == "latency" else gate.what
    value, interval = _figures(v.figure, points=gate.what == "metric")
    return f"{what}, +{limit}", value, interval, v.verdict, v.why


def _figures(figure: Figure, *, points: bool) -> tuple[str, str]:
    if figure.value is None:
        return "n/a", figure.note

    def told(value: float | None) -> str:
        return "?" if value is None else f"{value:+.2f}" if points else f"{value:.3f}"

    bounds = f"[{told(figure.low)}, {told(figure.high)}]" if (figure.low, figure.high) != (None, None) else ""
    return told(figure.value) + (" points" if points else ""), bounds


def _name(engine: EngineFacts) -> str:
    return printable(engine.name)


def _versions(comparison: Comparison) -> str:
    pairs = {f"{n} {v}" for side in (comparison.base, comparison.new) for n, v in side.versions.items()}
    return _cell(", ".join(sorted(pairs)))


_ESCAPES = str.maketrans({m: f"&#{ord(m)};" for m in "<>|@#&"} | {m: f"\\{m}" for m in "\\`*_[]"})


def _cell(text: str) -> str:
    """Text that can break neither a Markdown table nor its HTML, and names no one."""
    return " ".join(printable(text).translate(_ESCAPES).split())
