"""Adopt: an ONNX file as it is, checked and self-contained, and rows to feed it.

The graph is not rewritten, as `load` would: what is measured is the user's own file. Without data, rows are made
up within what the model takes. torch is imported only where the data is more than an .npz file.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Adopt
from petra_deploy.core.outcome import Graph
from petra_deploy.core.profile import Adopted
from petra_deploy.core.samples import Samples
from petra_deploy.core.workload import DataSource, MetricSpec, Signature, Split, TensorSpec
from petra_deploy.worker.context import Context
from petra_deploy.worker.workload import labels, npz, onnx_file
from petra_deploy.worker.workload.fit import fitted
from petra_deploy.worker.workload.inputs import find_ranges, parse_all, random_rows
from petra_deploy.worker.workload.table import Table

_ROWS = 64  # made up


def run(job: Adopt, context: Context) -> Adopted:
    """Raises Problem "input" or "unsupported" for what is wrong with the file or the data."""
    scratch = context.store.scratch()
    try:
        path = scratch / "model.onnx"
        onnx_file.take(Path(job.model), path)
        inputs = onnx_file.narrowed(onnx_file.input_specs(path), parse_all(job.inputs))
        signature = Signature(inputs=inputs, outputs=onnx_file.output_specs(path))
        size = path.stat().st_size
        split, metric, notes = _rows(job, signature, path, context)
        key = context.store.add(lambda folder: shutil.move(path, folder / "model.onnx"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    graph = Graph(key=key, signature=signature, bytes=size)
    return Adopted(graph=graph, split=split, metric=metric, notes=notes)


def _rows(
    job: Adopt, signature: Signature, path: Path, context: Context
) -> tuple[Split, MetricSpec | None, tuple[str, ...]]:
    if job.data == DataSource():
        fixed = signature.inputs[0].shape[0]
        rows = max(_ROWS, fixed) if isinstance(fixed, int) else _ROWS
        run = onnx_file.runner(path)
        made = random_rows(signature.inputs, rows, 0, find_ranges(signature.inputs, run))
        return Split(key=context.store.add(Samples(made).save), rows=rows, labelled=False, origin="random"), None, ()
    table, notes = fitted(_read(job.data, signature.inputs), signature.inputs)
    metric, more = labels.choose_metric(job.metric, [] if table.target is None else [table.target],
                                        signature.outputs[0])  # fmt: skip
    target = table.target
    if target is not None:
        (target,), said = labels.fit_labels([target], signature.outputs[0], metric)
        more = (*more, *said)
    key = context.store.add(Samples(dict(table.inputs), target).save)
    return Split(key=key, rows=len(table), labelled=target is not None), metric, (*notes, *more)


def _read(source: DataSource, inputs: Sequence[TensorSpec]) -> Table:
    """One table: the whole, or the test part of data that comes in parts."""
    names = [spec.name for spec in inputs]
    path = Path(source.path) if source.path else None
    if path is not None and path.suffix == ".npz":
        table = npz.read(path, names)
    else:
        from petra_deploy.worker.workload import data

        script = data.open_script(path) if path is not None and data.is_script(source) else None
        brought = data.read(source, names, script)
        table = next(
            (brought.parts[part] for part in ("test", "selection") if part in brought.parts), None
        ) or brought.example()  # type: ignore[assignment]  # fmt: skip
        if table is None:
            raise Problem("input", f"{source.path} holds no rows", "give an .npz file")
    if not table.named and len(table.inputs) == len(names):
        return Table(dict(zip(names, table.inputs.values(), strict=True)), table.target, table.where)
    return table
