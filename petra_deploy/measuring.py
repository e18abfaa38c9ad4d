"""Measuring engines, as a library: what `petra-deploy bench`, `compare` and their kin do.

    found = petra_deploy.compare("base/bundle", "new/bundle", fail_above="5%")
    found.comparison.verdicts[0].verdict            # "fail", "pass" or "inconclusive"

An engine is a bundle, a folder with a model.onnx, an .onnx file, or a profile that stands for one.
"""

from collections.abc import Sequence
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.advice import Advice
from petra_deploy.core.arguments import place
from petra_deploy.core.event import OnEvent, silent
from petra_deploy.core.request import parse_duration, parse_share
from petra_deploy.core.verdict import share
from petra_deploy.core.workload import DataSource
from petra_deploy.driver import compare as _compare
from petra_deploy.driver import refresh as _refresh
from petra_deploy.driver.compare import Compared
from petra_deploy.driver.session import kept_logs
from petra_deploy.driver.subject import Rows


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
    data: str | Path | None = None,
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
    name, there = place(target or "cpu", remote, remote_python)
    gates = share(
        latency=parse_share(fail_above), batches=batches, drop=fail_drop_above,
        size=None if fail_size_above is None else parse_share(fail_size_above),
    )  # fmt: skip
    asked = _compare.Asked(
        gates=gates, target=name, runtime=runtime, remote=there, threads=threads, most_rounds=rounds, seed=seed,
        rows=Rows(data=DataSource(path=None if data is None else str(Path(data).absolute())), inputs=tuple(inputs),
                  metric=metric),
        seconds=parse_duration(time), recorded=recorded, cross_machine=cross_machine, explain=explain,
    )  # fmt: skip
    with kept_logs("compare") as logs:
        found = _compare.compare(Path(base), Path(new), asked, logs, on_event)
    if save is not None:
        Path(save).parent.mkdir(parents=True, exist_ok=True)
        files.write_json(Path(save), found.comparison)
    return found


def refresh(
    bundle: str | Path,
    tried: str,
    *,
    target: str = "",
    data: str | Path | None = None,
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
    rows = Rows(data=DataSource(path=None if data is None else str(Path(data).absolute())), metric=metric)
    asked = _refresh.Asked(tried=tried, target=target, rows=rows, most_rounds=rounds, seconds=parse_duration(time),
                           seed=seed)  # fmt: skip
    with kept_logs("refresh") as logs:
        return _refresh.refresh(Path(bundle), asked, logs, on_event)


__all__ = ["Advice", "Compared", "compare", "refresh"]
