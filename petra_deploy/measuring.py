"""Measuring engines, as a library: what `petra-deploy bench`, `compare` and their kin do.

    found = petra_deploy.compare("base/bundle", "new/bundle", fail_above="5%")
    found.comparison.verdicts[0].verdict            # "fail", "pass" or "inconclusive"

An engine is a bundle, a folder with a model.onnx, an .onnx file, or a profile that stands for one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petra_deploy.api import Result, result_of
from petra_deploy.core import files
from petra_deploy.core.advice import Advice
from petra_deploy.core.arguments import DEFAULT_SCENARIOS, bench_options, data_source, place, refuse
from petra_deploy.core.event import OnEvent, silent
from petra_deploy.core.folder import open_run
from petra_deploy.core.profile import Profile
from petra_deploy.core.request import parse_duration, parse_share
from petra_deploy.core.verdict import share
from petra_deploy.driver import bench as _bench
from petra_deploy.driver import compare as _compare
from petra_deploy.driver import finish as _finish
from petra_deploy.driver import history as _history
from petra_deploy.driver import refresh as _refresh
from petra_deploy.driver.build import Asked
from petra_deploy.driver.compare import Compared
from petra_deploy.driver.history import History
from petra_deploy.driver.operators import profile_ops
from petra_deploy.driver.session import kept_logs
from petra_deploy.driver.subject import Rows


def bench(
    engine: str | Path, *, target: str = "", runtime: str = "", remote: str | None = None,
    remote_python: str | None = None, scenarios: Sequence[str] | str = DEFAULT_SCENARIOS,
    batches: Sequence[int] = (1, 16), threads: Sequence[int] = (), rounds: int = 5, time: float | str | None = None,
    latency_limit: float | str | None = None, streams: int = 8, data: Any = None, inputs: Sequence[str] = (),
    seed: int = 0, save: str | Path | None = None, on_event: OnEvent = silent,
) -> Profile | Result:  # fmt: skip
    """Measure a bundle or an ONNX file in the scenarios of MLPerf's load generator; finish a predicted run.

    `time` is in seconds, or text, for all of it: a minute where none is given. `latency_limit` is in ms, or text:
    what p99 of the server must keep (five times the single stream's p50 where none is given). Engines are fed `data`,
    or made-up rows within `inputs`. `save` writes the profile (docs/profiles.md).

    Of the --out folder of a predicted run, here or copied to its target, the front is measured there in at most
    `time` (10 minutes), the choice made again, and a Result returned.

    Raises BadInput where `engine` names nothing that can be measured, TargetAbsent where the target is not here, NotMet
    where nothing of a predicted front is better than the baseline there.
    """
    name, there = place(target, remote, remote_python) if target or remote else ("", None)
    path = Path(engine)
    if _finish.predicted(path):
        refuse({"save": save, "data": data, "latency_limit": latency_limit}, f"bench {path / 'bundle'}")
        asked = Asked(target=name, runtime=runtime, remote=there, seconds=parse_duration(time or 600.0))
        with open_run(path, True) as folder:
            return result_of(_finish.finish(folder, asked, on_event))
    asked = Asked(target=name, runtime=runtime, remote=there, seconds=parse_duration(time or _bench.SECONDS))
    wanted = bench_options(scenarios, batches, threads, rounds, latency_limit, streams, seed)
    with kept_logs("bench") as logs:
        rows = Rows(data=data_source(data, None, None, None, logs), inputs=tuple(inputs))
        return _bench.bench(path, asked, wanted, rows, logs, on_event, save=Path(save) if save else None)


def compare(
    base: str | Path,
    new: str | Path | None = None,
    *,
    target: str = "",
    runtime: str = "",
    remote: str | None = None,
    remote_python: str | None = None,
    fail_above: float | str = 0.05,
    fail_size_above: float | str | None = None,
    fail_drop_above: float | None = None,
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    data: Any = None,
    inputs: Sequence[str] = (),
    metric: str | None = None,
    rounds: int = 20,
    time: float | str = 600.0,
    seed: int = 0,
    recorded: bool = False,
    cross_machine: bool = False,
    explain: bool = False,
    save: str | Path | None = None,
    on_event: OnEvent = silent,
) -> Compared:
    """Measure `new` against `base` in turns until every gate is settled; `base` alone is a file that `save` wrote.

    Raises BadInput where the two cannot be compared, TargetAbsent where the target is not here.
    """
    if new is None:
        return Compared(_compare.again(Path(base)), ())
    if save is not None:
        files.writable(Path(save))
    name, there = place(target or "cpu", remote, remote_python)
    gates = share(
        latency=parse_share(fail_above), batches=batches, drop=fail_drop_above,
        size=None if fail_size_above is None else parse_share(fail_size_above),
    )  # fmt: skip
    with kept_logs("compare") as logs:
        asked = _compare.Asked(
            gates=gates, target=name, runtime=runtime, remote=there, threads=threads, most_rounds=rounds, seed=seed,
            rows=Rows(data=data_source(data, None, None, None, logs), inputs=tuple(inputs), metric=metric),
            seconds=parse_duration(time), recorded=recorded, cross_machine=cross_machine, explain=explain,
        )  # fmt: skip
        found = _compare.compare(Path(base), Path(new), asked, logs, on_event)
    if save is not None:
        Path(save).parent.mkdir(parents=True, exist_ok=True)
        files.write_json(Path(save), found.comparison)
    return found


def history(folder: str | Path) -> History:
    """Where the figures of the profiles in `folder`, and below it, changed for good: a report, never a verdict.

    Raises BadInput where no profile is there, MissingExtra without Apache Otava (docs/history.md).
    """
    return _history.trace(Path(folder))


def refresh(
    bundle: str | Path,
    tried: str,
    *,
    target: str = "",
    data: Any = None,
    metric: str | None = None,
    rounds: int = 20,
    time: float | str = 600.0,
    seed: int = 0,
    on_event: OnEvent = silent,
) -> Advice:
    """Replay a bundle's strategy under another version of its runtime, `tried` ("onnxruntime==1.31.0"), beside the
    installed one; `advice` is then "keep", "upgrade" or "search again", and `why` says why. The bundle stays as it is.

    Raises BadInput for a version that cannot be had or a bundle that another runtime serves, NotMet where the bundle
    has changed, TargetAbsent where its target (or `target`) is not here.
    """
    with kept_logs("refresh") as logs:
        rows = Rows(data=data_source(data, None, None, None, logs), metric=metric)
        asked = _refresh.Asked(tried=tried, target=target, rows=rows, most_rounds=rounds,
                               seconds=parse_duration(time), seed=seed)  # fmt: skip
        return _refresh.refresh(Path(bundle), asked, logs, on_event)


__all__ = ["Advice", "Compared", "History", "bench", "compare", "history", "profile_ops", "refresh"]
