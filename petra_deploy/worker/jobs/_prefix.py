"""What transform jobs share through the store: modules after shrinking and training, teacher outputs.

A strategy's first steps (phases SHRINK and RECOVER on the module) are chained like image layers: their
result is filed under a key made of the model, the training rows, the steps, the seed, the share of
epochs, the device, our own sources and the versions of the packages. Later strategies start from
the longest prefix that is there. Modules are pickled: the store is private to its user, and nothing
from a bundle is ever read this way.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from petra_deploy.core import files
from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.samples import Samples
from petra_deploy.core.strategy import Step
from petra_deploy.worker.context import Context
from petra_deploy.worker.quiet import cause
from petra_deploy.worker.workload.opened import open_module

BATCH_ROWS = 64
PACKAGES = ("torch", "torch-pruning", "numpy")


def longest(
    job: Transform, context: Context, steps: Sequence[Step], note: Callable[[str, dict[str, object]], None]
) -> tuple[Any, int]:
    """The module after the most of `steps` that the store has, and how many; facts go to `note`."""
    model = open_module(context.store, job.workload)  # makes the user's classes importable, too
    for count in range(len(steps), 0, -1):
        filed = context.store.answer(_key(job, steps[:count]))
        if not filed.exists():
            continue
        try:
            record = json.loads(filed.read_text())
            with open(context.store.path(record["entry"]) / "module.pkl", "rb") as file:
                kept = torch.load(file, weights_only=False, map_location="cpu")
        except Exception as error:  # evicted, torn, or classes of another session: the steps run again
            context.log(f"a kept module cannot be opened and is made again: {cause(error)}")
            continue
        context.log(f"starts from {count} kept step{'s' if count > 1 else ''}")
        for name, facts in record["facts"].items():
            note(name, facts)
        return kept, count
    return model, 0


def keep(job: Transform, context: Context, steps: Sequence[Step], model: Any, facts: dict[str, object]) -> None:
    """File `model` as what `steps` make of the workload's."""

    def write(folder: Path) -> None:
        with open(folder / "module.pkl", "wb") as file:
            torch.save(model, file, pickle_module=cloudpickle)

    try:
        entry = context.store.add(write)
    except OSError:
        raise
    except Exception as error:  # a module that cannot be pickled is trained again next time
        context.log(f"the module after these steps cannot be kept: {cause(error)}")
        return
    files.write_json(context.store.answer(_key(job, steps)), {"entry": entry, "facts": facts})


def teacher_outputs(job: Transform, context: Context) -> Sequence[np.ndarray]:
    """The original's outputs over all training rows, one memory-mapped array an output.

    Raises Problem("unsupported") where there are no training rows.
    """
    workload = job.workload
    if workload.train is None:
        raise Problem("unsupported", "there are no training rows to ask the original about")
    train = Samples.open(context.store.path(workload.train.key))
    names = [spec.name for spec in workload.signature.inputs]
    size = workload.signature.fixed_batch or BATCH_ROWS

    def write(folder: Path) -> None:
        _write_outputs(folder, open_module(context.store, workload), train, names, size)

    return _made_once(context, ["teacher", workload.model, workload.train.key], write)


def kept(job: Transform, context: Context, name: str, make: Callable[[], Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    """What `make` gives for this model and its training rows, read from the store where it was made before."""
    workload = job.workload

    def write(folder: Path) -> None:
        for index, array in enumerate(make()):
            np.save(folder / f"{index}.npy", array, allow_pickle=False)

    train = workload.train.key if workload.train else None
    return _made_once(context, ["kept", name, workload.model, train, job.device], write)


def _made_once(context: Context, parts: Sequence[object], write: Callable[[Path], None]) -> Sequence[np.ndarray]:
    """The arrays that `write` puts into a folder, filed under `parts`, our sources and the versions."""
    filed = context.store.answer(_hash([*parts, sources(), versions()]))
    if filed.exists() and (entry := json.loads(filed.read_text())["entry"]) in context.store:
        return _outputs(context.store.path(entry))
    entry = context.store.add(write)
    files.write_json(filed, {"entry": entry})
    return _outputs(context.store.path(entry))


def _write_outputs(folder: Path, model: torch.nn.Module, train: Samples, names: Sequence[str], size: int) -> None:
    arrays: list[np.ndarray] = []
    start = 0
    with torch.no_grad():
        for feeds, _ in train.batches(size):
            rows = len(next(iter(feeds.values())))
            if rows < size:  # a static batch takes no less: the last one is filled up
                feeds = {name: np.resize(values, (size, *values.shape[1:])) for name, values in feeds.items()}
            outputs = [o.cpu().numpy()[:rows] for o in model(*(torch.from_numpy(feeds[name]) for name in names))]
            if not arrays:
                arrays = [
                    np.lib.format.open_memmap(
                        folder / f"{index}.npy", mode="w+", dtype=o.dtype, shape=(len(train), *o.shape[1:])
                    )
                    for index, o in enumerate(outputs)
                ]
            for array, output in zip(arrays, outputs, strict=True):
                array[start : start + rows] = output
            start += rows
    for array in arrays:
        array.flush()  # type: ignore[attr-defined]


def _outputs(folder: Path) -> list[np.ndarray]:
    count = len(list(folder.glob("*.npy")))
    return [np.load(folder / f"{index}.npy", mmap_mode="r", allow_pickle=False) for index in range(count)]


def _key(job: Transform, steps: Sequence[Step]) -> str:
    workload = job.workload
    data = [workload.train.key if workload.train else None, workload.calibration.key]
    effort = [job.strategy.seed, job.fidelity.epochs, job.device]
    parts = ["module", workload.model, files.plain(workload.signature), workload.metric.name, *data]
    return _hash([*parts, [files.plain(step) for step in steps], *effort, sources(), versions()])


def _hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(files.canonical(list(parts))).hexdigest()


@functools.cache
def sources() -> str:
    """sha256 over our own code that works on models: a changed line makes what is kept unknown."""
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("core", "worker"):
        for path in sorted((package / room).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> str:
    return " ".join(f"{name}={metadata.version(name)}" for name in PACKAGES)
