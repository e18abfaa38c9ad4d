"""Build: from an exported graph to the engine that ships, by the target's backend."""

import shutil
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Backend
from petra_deploy.core.job import Build
from petra_deploy.core.outcome import Engine
from petra_deploy.worker.context import Context


def run(job: Build, context: Context) -> Engine:
    """The engine, published in the store. Raises Problem where the backend cannot."""
    backend: Backend = registry.find("backend", job.target.runtime)
    if reasons := backend.obstacles(job.target):
        raise Problem("unsupported", f"{job.target.runtime} cannot serve {job.target.name}: {'; '.join(reasons)}")
    model = context.store.path(job.graph.key) / "model.onnx"
    scratch = context.store.scratch()
    try:
        engine = backend.build(job.graph, model, job.target, job.settings, scratch)
        key = context.store.add(lambda folder: _move(scratch, folder))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return replace(engine, key=key)


def _move(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        path.rename(folder / path.name)
