"""The load job: open what the user brought, settle how it is used, and file it in the store.

Model, signature, data, metric and splits, in that order; everything that is missing or was
changed is said in notes. The test split is handed out apart, sealed.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.files import write_json
from petra_deploy.core.job import Load
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import Loaded, MetricSpec, SealedSplit, Signature, Split, TensorSpec, Workload
from petra_deploy.worker.context import Context
from petra_deploy.worker.model import lift
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.workload import (
    batch_axis,
    data,
    exported,
    factory,
    labels,
    onnx_file,
    signature,
    splits,
    torchscript,
)
from petra_deploy.worker.workload.data import Brought
from petra_deploy.worker.workload.fit import fitted
from petra_deploy.worker.workload.inputs import FREE, InputSpec, Run, find_ranges, parse_all, random_rows
from petra_deploy.worker.workload.opened import open_graph
from petra_deploy.worker.workload.opening import Opened, open_model
from petra_deploy.worker.workload.table import Table
from petra_deploy.worker.workload.words import one_line

_RANDOM_ROWS = {"calibration": 128, "selection": 512, "test": 512}
_RANDOM_BYTES = 256 << 20
_TRIED_ROWS = 64


@dataclass(frozen=True)
class _Ready:
    """A model that runs: what it takes and gives, and what goes into its store entry."""

    signature: Signature
    run: Run
    fill: Callable[[Path], None]
    notes: tuple[str, ...]


def run(job: Load, context: Context) -> Loaded:
    """Raises Problem("input") for whatever is wrong with what the user brought."""
    specs = parse_all(job.options.inputs)
    script = data.open_script(Path(job.data.path)) if job.data.path and data.is_script(job.data) else None
    opened = open_model(job.model, script)
    scratch = context.store.scratch()
    try:
        names = _input_names(opened, specs, scratch)
        brought = data.read(job.data, names, script)
        context.log(f"the model is a {opened.form}; {len(brought.tables())} tables of data")
        brought = data.with_names(brought, _order(brought, opened, names))
        ready = _graph(opened, brought, specs, scratch) if opened.form in _GRAPHS else _module(opened, brought, specs)
        tables, origin, notes = _rows(brought, ready, job.options.seed)
        metric_name = job.options.metric or _script_metric(script)
        tables, metric, more = _judged(tables, metric_name, ready)
        readable = set(opened.readable) | ({str(script.path.parent)} if script else set())
        if ":" in metric.name:
            readable.add(str(Path(metric.name.rpartition(":")[0]).parent))
        kept = {name: _save(context.store, table, origin) for name, table in tables.items()}
        workload = Workload(
            model=context.store.add(ready.fill),
            form=opened.form,
            sha256=opened.sha256,
            name=opened.name,
            signature=ready.signature,
            metric=metric,
            train=kept.get("train"),
            calibration=kept["calibration"],
            selection=kept["selection"],
            readable=tuple(sorted(readable)),
            notes=tuple(dict.fromkeys((*opened.notes, *ready.notes, *notes, *more))),
        )
        if workload.is_graph:
            workload = _lifted(workload, context)
        return Loaded(workload=workload, sealed=SealedSplit(split=kept["test"]))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_GRAPHS = ("torchscript", "exported", "onnx")


def _input_names(opened: Opened, specs: tuple[InputSpec, ...], scratch: Path) -> tuple[str, ...]:
    """Names of inputs that must be given: so an array `y` may be one, and `labels` be no input.

    (Models of the transformers library take `labels` too, to compute a loss.)
    """
    said = [spec.name for spec in specs if spec.name]
    if opened.module is not None:
        return tuple(dict.fromkeys((*said, *signature.parameters(opened.module).required)))
    if opened.path is None:
        return tuple(said)
    path = scratch / "model.onnx"
    if opened.form == "onnx":
        onnx_file.take(opened.path, path)
    else:
        exported.convert(opened.path, scratch / "exported.onnx")
        onnx_file.take(scratch / "exported.onnx", path)
    return tuple(spec.name for spec in onnx_file.input_specs(path))


def _order(brought: Brought, opened: Opened, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names for arrays that came without: the model's, as many as there are arrays."""
    example = brought.example()
    count = len(example.inputs) if example else 0
    if len(names) < count and opened.module is not None:
        names = tuple(dict.fromkeys((*names, *signature.parameters(opened.module).names)))
    return names[:count] if len(names) >= count else ("input",) if count == 1 else names


def _module(opened: Opened, brought: Brought, specs: tuple[InputSpec, ...]) -> _Ready:
    module = opened.module
    if module is None:
        raise Problem("input", f"{opened.name} is not a module")
    called = signature.settle(module, brought.example(), specs)
    folders = (*opened.readable,)
    source = replace(
        opened.source, names=called.names, call=called.call, folders=folders, code=factory.code_digests(folders)
    )

    def fill(folder: Path) -> None:
        write_json(folder / "source.json", source)
        if opened.path is None:
            torch.save(module.state_dict(), folder / source.file)
        else:
            shutil.copyfile(opened.path, folder / source.file)

    return _Ready(called.signature, signature.runner(Adapter(module, called.names, called.call)), fill, called.notes)


def _graph(opened: Opened, brought: Brought, specs: tuple[InputSpec, ...], scratch: Path) -> _Ready:
    path = scratch / "model.onnx"
    notes: tuple[str, ...] = ()
    if opened.module is not None:
        notes = torchscript.convert(opened.module, brought.example(), specs, scratch / "script.onnx")
        onnx_file.take(scratch / "script.onnx", path)
    notes += batch_axis.free(path)
    found, more = onnx_file.settle(path, brought.example(), specs)
    source = replace(opened.source, file="model.onnx", names=tuple(spec.name for spec in found.inputs))

    def fill(folder: Path) -> None:
        write_json(folder / "source.json", source)
        shutil.copyfile(path, folder / "model.onnx")

    return _Ready(found, onnx_file.runner(path), fill, (*notes, *more))


def _lifted(workload: Workload, context: Context) -> Workload:
    """The same, with whether its graph becomes a module of layers that answers alike."""
    path = open_graph(context.store, workload)
    calibration = Samples.open(context.store.path(workload.calibration.key))
    try:
        module = lift.lift(path, workload.signature, calibration)
        lift.check(module, path, workload.signature, calibration)
    except Problem as problem:
        note = f"no layer of the graph can be removed or trained: {problem.reason}"
        return replace(workload, unlifted=problem.reason, notes=(*workload.notes, note))
    context.log(f"the graph was lifted into {len(list(module.inner.parameters()))} parameters of layers")
    return replace(workload, lifted=True)


def _rows(brought: Brought, ready: _Ready, seed: int) -> tuple[dict[str, Table], str, tuple[str, ...]]:
    """All splits, fitted to the signature; made-up ones where there is no data."""
    inputs = ready.signature.inputs
    if not brought.tables():
        ranges = find_ranges(inputs, ready.run)
        share = min(1.0, _RANDOM_BYTES / (sum(_RANDOM_ROWS.values()) * sum(map(_row_bytes, inputs))))
        tables = {
            name: Table(random_rows(inputs, max(8, int(rows * share)), seed + i, ranges), None, "random inputs")
            for i, (name, rows) in enumerate(_RANDOM_ROWS.items())
        }
        note = "without data, random inputs are used: agreement on them says little about real inputs; add --data"
        return tables, "random", (note, "there are no train rows, so no recovery training")
    notes: tuple[str, ...] = ()
    fit: dict[str, Table] = {}
    for name, table in (*brought.parts.items(), *((("", brought.whole),) if brought.whole else ())):
        fit[name], said = fitted(table, inputs)
        notes += said
    whole = fit.pop("", None)
    tables, more = splits.complete(replace(brought, whole=whole, parts=fit), seed)
    return tables, "data", notes + more


def _judged(
    tables: dict[str, Table], metric_name: str | None, ready: _Ready
) -> tuple[dict[str, Table], MetricSpec, tuple[str, ...]]:
    """The metric, and the tables with labels as it needs them."""
    output = ready.signature.outputs[0]
    judged = [name for name in ("selection", "test") if tables[name].target is not None]
    if len(judged) == 1:
        raise Problem(
            "input", f"{judged[0]} rows have labels, the others have none", "label selection and test rows alike"
        )
    named = {name: table.target for name, table in tables.items() if table.target is not None} if judged else {}
    targets = list(named.values())
    spec, notes = labels.choose_metric(metric_name, targets, output)
    fit, more = labels.fit_labels(targets, output, spec) if targets else ([], ())
    made = dict(zip(named, fit, strict=True))
    tables = {name: replace(table, target=made.get(name)) for name, table in tables.items()}
    _try(tables["selection"], spec, ready)
    return tables, spec, (*notes, *more)


def _try(table: Table, spec: MetricSpec, ready: _Ready) -> None:
    """Run some rows for real: outputs must be finite, and the metric must take them."""
    fixed = ready.signature.inputs[0].shape[0]
    part = splits.sample(table, fixed if isinstance(fixed, int) else _TRIED_ROWS, 0)
    if isinstance(fixed, int) and len(part) != fixed:
        raise Problem("input", f"{table.where} has fewer rows than the {fixed} the model takes", "give more rows")
    outputs = _run_on(ready, part)
    first = outputs[0][1]
    if first.dtype.kind == "f" and not np.isfinite(first).all():
        bad = int((~np.isfinite(first.reshape(len(first), -1))).any(axis=1).sum())
        raise Problem(
            "input", f"the model's output is NaN or infinite for {bad} of {len(first)} rows", "check weights and data"
        )
    labels.check_metric(spec, outputs, part.target)


def _run_on(ready: _Ready, part: Table) -> list[tuple[str, np.ndarray]]:
    try:
        return ready.run(part.inputs)
    except Problem:
        raise
    except Exception as error:  # the user's forward may raise anything
        hint = "check that all rows fit the model: index ranges, shapes, values"
        raise Problem("input", f"the model raised {one_line(error)} on rows of {part.where}", hint) from error


def _script_metric(script: data.Script | None) -> str | None:
    metric = script.get("metric") if script else None
    if script is None or metric is None or isinstance(metric, str):
        return metric
    if script.is_method("metric"):
        hint = "define metric(outputs, targets) at the top of the file"
        raise Problem("input", f"metric of {script.path.name} is a method, which the scoring cannot find", hint)
    return script.spec("metric")


def _row_bytes(spec: TensorSpec) -> int:
    return (
        int(np.prod([FREE if isinstance(n, str) else n for n in spec.shape[1:]], dtype=np.int64))
        * np.dtype(spec.dtype).itemsize
    )


def _save(store: Store, table: Table, origin: str) -> Split:
    samples = Samples(dict(table.inputs), table.target)
    key = store.add(lambda folder: samples.save(folder))
    return Split(
        key=key, rows=len(table), labelled=table.target is not None, origin="random" if origin == "random" else "data"
    )
