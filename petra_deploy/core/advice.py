"""What to do about another version of a runtime: keep the installed one, upgrade, or search again; and why.

    verdict, why = advise(trial, "onnxruntime 1.31.0")          # ("upgrade", "not slower by 2%, ...")

A pure function of what was found, in this order, the first that applies:

    search again    the strategy no longer works there: a step, the build or the answers fail, or the metric falls
                    further below the original's than the bundle was allowed
    keep            the metric (but agreement, which knows no better) is worse than with the installed version, beyond
                    noise; or a call is slower by GATE
    search again    the speedup over the original there is surely not what was promised: another strategy may be better
    keep            the rounds do not settle whether a call is slower by GATE
    upgrade         a call is faster, or not slower by GATE
"""

from dataclasses import dataclass, field
from typing import Literal

from petra_deploy.core.comparison import Comparison, Verdict
from petra_deploy.core.data import Data
from petra_deploy.core.outcome import Figure

What = Literal["keep", "upgrade", "search again"]
GATE = 0.02  # a call may take this much longer: less than what a version is worth, more than rounds scatter
HOLDS = 0.8  # of a recorded speedup; machines and retrained weights differ a little


@dataclass(frozen=True, kw_only=True)
class Judged(Data):
    """The metric of the bundle's engine with the installed version, and of the replayed one with the other."""

    metric: str
    rows: str  # "test", "given" or "made-up"
    n: int
    installed: float
    tried: float
    drop: Figure  # points, of the second below the first, paired by row
    below_original: Figure | None = None  # points, of the second below the original's with the same version
    max_drop: float  # points that the bundle was allowed

    @property
    def real(self) -> bool:
        """Whether a metric on these rows says anything of the task."""
        return self.rows != "made-up"


@dataclass(frozen=True, kw_only=True)
class Standing(Data):
    """The replayed engine against the original, both with the version that was tried."""

    speedup: Figure
    promised: float | None = None  # by the manifest, where it was measured on this kind of machine


@dataclass(frozen=True, kw_only=True)
class Trial(Data):
    """What was found; a part is None where it could not be."""

    broken: str = ""  # why the strategy does not work with the version that was tried
    latency: Verdict | None = None  # tried / installed
    judged: Judged | None = None
    standing: Standing | None = None


@dataclass(frozen=True, kw_only=True)
class Advice(Data):
    """The answer of `petra-deploy refresh`."""

    bundle: str
    tried: str  # "onnxruntime==1.31.0"
    target: str
    advice: What
    why: str  # a sentence
    installed: dict[str, str]  # versions that the bundle's engine ran with
    versions: dict[str, str]  # that the replayed one ran with; empty where it could not
    replayed: bool  # the strategy's steps ran again with the version that was tried; else the bundle's file is used
    same_file: bool  # what was built with it is the bundle's file, to the byte
    trial: Trial
    comparison: Comparison | None = None  # with the raw rounds
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0


def advise(trial: Trial, version: str) -> tuple[What, str]:
    """The verdict, and its reason as a sentence. `version` is in words: "onnxruntime 1.31.0"."""
    judged, latency, standing = trial.judged, trial.latency, trial.standing
    if trial.broken:
        return "search again", f"the strategy does not work with {version}: {trial.broken}"
    if judged and judged.real and (lost := _lost(judged)) > judged.max_drop:
        return "search again", (
            f"{judged.metric} is {lost:.2f} points below the original's with {version}, where {judged.max_drop:g} "
            "are allowed"
        )
    if judged and judged.real and judged.metric != "agreement" and (judged.drop.low or 0.0) > 0:
        return "keep", f"{judged.metric} is worse with {version}, by {_span(judged.drop)} points on the same rows"
    if latency is None:
        raise ValueError("a strategy that works was timed")
    if latency.verdict == "fail":
        return "keep", f"a call takes {_span(latency.figure)} times as long with {version}"
    if standing and not holds(standing.speedup, standing.promised or 0.0):
        promised = "" if standing.promised is None else f", where {standing.promised:.2f}x was promised"
        return "search again", f"with {version} it is {_span(standing.speedup)}x the original's speed{promised}"
    if latency.verdict == "inconclusive":
        more = "a quieter machine, or more rounds, may"
        return "keep", f"nothing speaks for {version} so far: {latency.why}; {more}"
    if latency.figure.high is not None and latency.figure.high < 1:
        return "upgrade", f"a call is faster with {version}: it takes {_span(latency.figure)} times as long"
    return "upgrade", f"a call is {latency.why}: it takes {_span(latency.figure)} times as long with {version}"


def holds(now: Figure, promised: float) -> bool:
    """False where a speedup is surely none, or far below the promised one and surely below it."""
    high = now.known() if now.high is None else now.high
    return high > 1 and (now.known() >= HOLDS * promised or high >= promised)


def _lost(judged: Judged) -> float:
    """Points below the original, as far as is known; an unknown original is left out by the driver."""
    return judged.below_original.known() if judged.below_original else judged.drop.known()


def _span(figure: Figure) -> str:
    """ "0.931 [0.921, 0.942]"."""
    bounds = f" [{figure.low:.3f}, {figure.high:.3f}]" if None not in (figure.low, figure.high) else ""
    return f"{figure.known():.3f}{bounds}"
