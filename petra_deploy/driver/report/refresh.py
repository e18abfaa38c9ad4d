"""What came of trying another version of a runtime, for people.

print(table(advice))
"""

from petra_deploy.core.advice import GATE, Advice
from petra_deploy.core.rounds import figures
from petra_deploy.driver.report.table import columns, interval, printable


def table(advice: Advice) -> str:
    """Both versions beside each other, what was found, the notes, and last the verdict with its reason."""
    lines = [f"{printable(advice.bundle)} with {printable(advice.tried)} on {printable(advice.target)}", ""]
    cells = [("", _versions(advice.installed), _versions(advice.versions) or printable(advice.tried), "")]
    trial, comparison = advice.trial, advice.comparison
    if comparison is not None and trial.latency is not None:
        found, gate = figures(comparison.rounds), trial.latency.gate
        installed, tried = (f"{side[0].p50.known():.4g} ms" for side in (found.baseline, found.candidate))
        cells.append((f"latency p50, batch {gate.batch}", installed, tried,
                      f"{interval(trial.latency.figure, 'x')}, {GATE:.0%} more is allowed"))  # fmt: skip
    if (judged := trial.judged) is not None:
        name = f"{printable(judged.metric)}, {judged.n} {judged.rows} rows"
        cells.append((name, f"{judged.installed:.4g}", f"{judged.tried:.4g}", f"drop {interval(judged.drop)} points"))
        if judged.below_original is not None:
            below = interval(judged.below_original)
            cells.append(("below the original", "", f"{below} points", f"{judged.max_drop:g} are allowed"))
    if (standing := trial.standing) is not None:
        promised = "" if standing.promised is None else f"{standing.promised:.2f}x was promised"
        cells.append(("speedup over the original", "", interval(standing.speedup, "x"), promised))
    if len(cells) > 1:
        lines += [columns(cells), ""]
    lines += [f"note: {printable(note)}" for note in dict.fromkeys(advice.notes)]
    return "\n".join([*lines, f"{advice.advice}: {printable(advice.why)}"])


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{printable(name)} {printable(version)}" for name, version in found.items())
