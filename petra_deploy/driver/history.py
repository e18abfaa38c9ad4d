"""Where the figures of stored profiles changed for good: change points, found by Apache Otava. A report, never a gate.

    history = trace(Path("profiles/cpu-vnni"))
    history.series[0].changes[0].change        # 0.10: from then on 10% more

A series is one figure of one engine in one scenario on one machine: profiles of different machines are never one.
Otava (the extra `history`) splits a series where the parts differ most (E-divisive means, arXiv 1306.4933) and
keeps the splits that Student's t-test finds significant (Fleming and others, doi 10.1145/3578244.3583719).
docs/history.md says how often noise alone passes.
"""

import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from petra_deploy.core.data import Data
from petra_deploy.core.errors import BadInput, MissingExtra
from petra_deploy.core.outcome import Figure
from petra_deploy.core.profile import Profile, Scenario
from petra_deploy.driver import profiles

FEWEST = 8  # profiles: with fewer, most steps of five standard deviations pass unseen (docs/history.md)
_WORST_P = 0.001  # Otava's own default, of one split
_LEAST_CHANGE = 0.01  # a smaller one is not worth a line
_STATE = ("governor", "system")  # of the machine, that may change without its becoming another
Stored = tuple[Path, Profile]


@dataclass(frozen=True, kw_only=True)
class Change(Data):
    """From the profile `file` on. `before` and `after` are means over the profiles up to the next change."""

    created: str  # of that profile
    file: str
    before: Figure
    after: Figure
    change: float  # after / before - 1
    p: float  # of Student's t-test, before against after
    with_it: tuple[str, ...] = ()  # what else differs from the profile before: "onnxruntime 1.31.0 -> 1.32.0"


@dataclass(frozen=True, kw_only=True)
class Series(Data):
    engine: str
    target: str
    machine: str  # processor, instructions, cores, GPUs, runtime
    what: str  # "single-stream, batch 1, 1 thread: p50"
    more_is_better: bool
    count: int
    first: str  # `created` of the first and last profile
    last: str
    value: Figure  # of the last profile
    changes: tuple[Change, ...] = ()
    needs: int = 0  # profiles that it takes to look for changes; 0: there are enough


@dataclass(frozen=True, kw_only=True)
class History(Data):
    profiles: int
    series: tuple[Series, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # file -> why


class _Point(NamedTuple):
    file: Path
    profile: Profile
    figure: Figure


class _Key(NamedTuple):
    engine: str
    target: str
    machine: str
    what: str
    more_is_better: bool


def trace(folder: Path) -> History:
    """Over every profile (*.json) in `folder` and below it.

    Raises BadInput where there is none, MissingExtra where Apache Otava is not installed.
    """
    stored, left_out = read(folder)
    if not stored:
        why = "; ".join(f"{file}: {reason}" for file, reason in left_out.items()) or "no .json file"
        raise BadInput(f"no profile is in {folder} ({why})", "petra-deploy bench MODEL --save FILE.json writes one")
    return history(stored, left_out)


def read(folder: Path) -> tuple[list[Stored], dict[str, str]]:
    """The profiles by the time they were made, and why other files are left out."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder", "give the folder that profiles are saved in")
    found, left_out = [], {}
    for path in sorted(folder.rglob("*.json")):
        try:
            profile = profiles.read(path)
            _time(profile)
        except (BadInput, ValueError) as error:
            left_out[path.relative_to(folder).as_posix()] = getattr(error, "message", str(error))
        else:
            found.append((path, profile))
    return sorted(found, key=lambda one: _time(one[1])), left_out


def history(stored: Sequence[Stored], left_out: dict[str, str] | None = None) -> History:
    """A pure function of profiles in the order of their making."""
    split = _otava()
    series: dict[_Key, list[_Point]] = {}
    for path, profile in stored:
        for key, figure in _figures(profile):
            series.setdefault(key, []).append(_Point(path, profile, figure))
    return History(
        profiles=len(stored),
        series=tuple(_series(key, points, split) for key, points in series.items()),
        left_out=left_out or {},
    )


def _series(key: _Key, points: Sequence[_Point], split: "_Split") -> Series:
    values = [point.figure.known() for point in points]
    found = split(values) if len(values) >= FEWEST else []
    edges = [0, *(index for index, _ in found), len(values)]
    changes = []
    for (index, p), start, end in zip(found, edges, edges[2:], strict=False):
        before, after = (_mean(points[a:b]) for a, b in ((start, index), (index, end)))
        new, old = points[index], points[index - 1]
        changes.append(
            Change(created=new.profile.created, file=new.file.name, before=before, after=after,
                   change=after.known() / before.known() - 1, p=p, with_it=tuple(_differences(old, new)))
        )  # fmt: skip
    return Series(
        **key._asdict(), count=len(points), first=points[0].profile.created, last=points[-1].profile.created,
        value=points[-1].figure, changes=tuple(changes), needs=0 if len(values) >= FEWEST else FEWEST,
    )  # fmt: skip


def _figures(profile: Profile) -> Iterator[tuple[_Key, Figure]]:
    """Each figure that has a value, under the key of its series."""

    def key(what: str, more_is_better: bool = False) -> _Key:
        return _Key(profile.engine.name, profile.target, _machine(profile), what, more_is_better)

    for scenario in profile.measured.scenarios:
        where, tail = _where(scenario), scenario.latency
        named = [("throughput", scenario.throughput, True)]
        if scenario.name != "server":  # whose calls come at another rate each time
            named += [
                ("p50", tail.p50 if tail else None, False),
                ("p99", tail.p99 if tail else None, False),
                ("p50 / yardstick", _over_yardstick(scenario), False),
            ]
        for name, figure, more in named:
            if figure is not None and figure.value is not None:
                yield key(f"{where}: {name}", more), figure
    memory = profile.measured.peak_memory
    if memory is not None and memory.value is not None:
        yield key("peak memory"), memory


def _where(scenario: Scenario) -> str:
    threads = f"{scenario.threads} thread{'s' if scenario.threads != 1 else ''}"
    limit, how = scenario.settings.get("limit_ms"), scenario.settings.get("limit", "given")
    under = "" if limit is None else f", under {f'{limit} ms' if how == 'given' else how}"
    return f"{scenario.name}, batch {scenario.batch}, {threads}{under}"


def _over_yardstick(scenario: Scenario) -> Figure | None:
    """The engine's median call over the yardstick's in the same round: steadier than either from hour to hour."""
    ratios = [_median(one["engine"]) / max(_median(one["yardstick"]), 1.0) for one in scenario.rounds
              if "engine" in one and "yardstick" in one]  # fmt: skip
    return Figure(value=statistics.median(ratios), unit="ratio", n=len(ratios)) if ratios else None


def _median(calls: dict[str, Any]) -> float:
    return float(statistics.median(calls["hot_ns"]))


def _machine(profile: Profile) -> str:
    known = profile.measured.machine
    listed = (*_words(known.get("instructions")), *_words(known.get("gpus")))
    return ", ".join(filter(None, [
        str(known.get("cpu", "unknown processor")), f"{known.get('cores', '?')} cores", " ".join(listed),
        profile.engine.runtime,
    ]))  # fmt: skip


def _words(value: object) -> Iterable[str]:
    return map(str, value) if isinstance(value, list | tuple) else ()


def _differences(old: _Point, new: _Point) -> Iterator[str]:
    """Candidates for the cause, no more than that."""
    one, other = old.profile, new.profile
    if one.engine.sha256 != other.engine.sha256:
        yield "another model.onnx"
    before, after = ({**p.engine.versions, **{k: p.measured.machine.get(k) for k in _STATE}} for p in (one, other))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield f"{name} {before[name]} -> {after[name]}"


def _mean(points: Sequence[_Point]) -> Figure:
    return Figure(value=statistics.fmean(point.figure.known() for point in points), unit=points[0].figure.unit,
                  n=len(points), note="mean over profiles")  # fmt: skip


def _time(profile: Profile) -> datetime:
    made = datetime.fromisoformat(profile.created)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


_Split = Callable[[list[float]], list[tuple[int, float]]]


def _otava() -> _Split:
    """Values, in the order of time, to (index of the first value after a change, p)."""
    try:
        from otava.analysis import compute_change_points
    except ImportError as error:
        raise MissingExtra(
            f"change points are found by Apache Otava, which is not installed ({error})",
            'pip install "petra-deploy[history]"; docs/history.md names a lighter way',
        ) from None

    def split(values: list[float]) -> list[tuple[int, float]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # equal values: a t-test without a variance
            points, _ = compute_change_points(values, max_pvalue=_WORST_P, min_magnitude=_LEAST_CHANGE)
        return [(int(point.index), float(point.stats.pvalue)) for point in points]

    return split
