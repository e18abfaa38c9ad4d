"""The prediction ledger: what was predicted of a target beside what was measured there.

    entries = compare(predicted, measured, model="digits_cnn", strategy="prune", artifact=engine.key)
    append("t4", entries)                       # to this user's ledger of the target
    bar = error_bar(target)                     # ErrorBar(latency=1.4, speedup=1.2, n=12, device="Tesla T4")

A ledger is `profiles/<target>/ledger.json`: shipped with petra-deploy, or this user's own in the cache
folder, which takes the shipped one's place. Error bars of later predictions come from it.
"""

import datetime
import fcntl
import fnmatch
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt

from petra_deploy.core import files, machine
from petra_deploy.core.data import Data
from petra_deploy.core.outcome import ErrorBar, Measurement, WorkSum
from petra_deploy.core.store import default_root
from petra_deploy.core.target import Target

FEWEST = 5  # artifacts that were measured, before a ledger says more than the assumption
SHARE = 0.9  # of the comparisons that lie within the error bar
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class Entry(Data):
    """One artifact at one batch size. Speedups are over the baseline that was predicted and measured with it."""

    date: str  # of the measurement, ISO 8601
    model: str
    strategy: str  # in words
    artifact: str  # its key, by content
    batch: int
    work: WorkSum
    predicted_ms: Positive  # median of one call
    measured_ms: Positive
    predicted_speedup: Positive
    measured_speedup: Positive
    clock: Literal["wall", "processor"] = "wall"  # whose time: of one thread the processor's, on a busy machine
    device: str  # a processor's model, or the CUDA driver's name of the device
    versions: dict[str, str] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()  # of a processor

    @property
    def latency_ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_ms / self.measured_ms

    @property
    def speedup_ratio(self) -> float:
        return self.predicted_speedup / self.measured_speedup


@dataclass(frozen=True, kw_only=True)
class Ledger(Data):
    schema: Literal["petra-deploy/ledger/1"] = "petra-deploy/ledger/1"
    target: str
    entries: tuple[Entry, ...] = ()


def compare(
    predicted: Measurement,
    measured: Measurement,
    *,
    model: str,
    strategy: str,
    artifact: str,
    device: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> tuple[Entry, ...]:
    """An entry a batch size that both have; `device` is this machine's processor unless given, and `versions`
    (of a driver, a runtime) are added to the machine's.

    Raises ValueError where the two are not a prediction and a measurement.
    """
    origins = predicted.speedup.origin, measured.speedup.origin
    if origins != ("predicted", "measured"):
        raise ValueError(f"a prediction is compared with a measurement, not {origins[0]} with {origins[1]}")
    there = {
        latency.batch: (latency.p50, ratio)
        for latency, ratio in zip(measured.candidate, measured.speedups, strict=True)
    }
    here = measured.machine
    packages, instructions = here.get("versions"), here.get("instructions")
    return tuple(
        Entry(
            date=datetime.datetime.now(datetime.UTC).date().isoformat(), model=model, strategy=strategy,
            artifact=artifact, batch=latency.batch, work=work, predicted_ms=latency.p50.known(),
            measured_ms=there[latency.batch][0].known(), predicted_speedup=ratio.known(),
            measured_speedup=there[latency.batch][1].known(), device=device or str(here.get("cpu", "")),
            versions={**(packages if isinstance(packages, dict) else {}), **(versions or {})},
            instructions=tuple(instructions) if isinstance(instructions, list | tuple) else (),
        )
        for latency, ratio, work in zip(predicted.candidate, predicted.speedups, predicted.work, strict=True)
        if latency.batch in there
    )  # fmt: skip


def read(target: str) -> Ledger:
    """This user's ledger of the target, else the shipped one, else an empty one. Raises BadInput for a broken file."""
    for path in (own(target), files.shipped("profiles") / target / "ledger.json"):
        if path.is_file():
            return files.read_json(path, Ledger)
    return Ledger(target=target)


def own(target: str) -> Path:
    """Where this user's ledger of the target lies, or would lie."""
    return default_root() / "profiles" / target / "ledger.json"


def append(target: str, entries: Sequence[Entry], path: Path | None = None) -> Path:
    """Add `entries` to this user's ledger (or to the one at `path`), whole or not at all; the first time to a copy
    of the shipped one. An entry of the same artifact, batch size and device as an older one takes its place.
    """
    path = path or own(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be writing: neither's entries are lost
        before = files.read_json(path, Ledger) if path.is_file() else read(target)
        kept = {_identity(entry): entry for entry in (*before.entries, *entries)}
        files.write_json(path, replace(before, target=target, entries=tuple(kept.values())))
    finally:
        os.close(lock)
    return path


def error_bar(target: Target) -> ErrorBar:
    """From the ledger, where it has enough artifacts that were measured on this very device; else the assumption."""
    entries = [entry for entry in read(target.name).entries if _same_device(entry, target)]
    if len({entry.artifact for entry in entries}) < FEWEST:
        return ErrorBar()
    return ErrorBar(
        latency=_factor([entry.latency_ratio for entry in entries]),
        speedup=_factor([entry.speedup_ratio for entry in entries]),
        n=len(entries),
        device=entries[-1].device,
    )


def _factor(ratios: Sequence[float]) -> float:
    """The least factor, either way, that `SHARE` of the ratios lie within; rounded up to two decimals."""
    errors = sorted(abs(math.log(ratio)) for ratio in ratios)
    return math.ceil(100 * math.exp(errors[math.ceil(SHARE * len(errors)) - 1])) / 100


def _same_device(entry: Entry, target: Target) -> bool:
    if target.device == "cuda":
        return fnmatch.fnmatchcase(entry.device, target.device_name or "*")
    here = machine.cpu_model(), machine.instructions()
    return not target.detect or (entry.device, entry.instructions) == here


def _identity(entry: Entry) -> tuple[str, int, str]:
    return entry.artifact, entry.batch, entry.device
