"""Transform: a strategy's steps on the model, and the ONNX graph that comes of them.

    module steps by phase -> export to ONNX -> graph steps by phase -> parity -> the store

Steps act on the module first and on the graph after; inside each by phase, equals in the strategy's
own order. The empty strategy is the baseline: the same path without a step. What came as a graph stays
that very graph as long as no step acts on a module; else it is lifted into one first. The module after
shrinking and recovery is kept in the store (`jobs/_prefix.py`), so that strategies which differ
in what comes later do not train again. A step that fails fails the job.
"""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from petra_deploy.core import registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Technique, Tools
from petra_deploy.core.files import decode
from petra_deploy.core.job import Transform
from petra_deploy.core.outcome import Graph
from petra_deploy.core.plan import Phase
from petra_deploy.core.samples import Samples
from petra_deploy.core.strategy import Step
from petra_deploy.worker.artifact import graph, names
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs import _prefix
from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import example_of, export
from petra_deploy.worker.training.device import resolve
from petra_deploy.worker.workload.opened import open_graph, open_module


@dataclass(frozen=True)
class Planned:
    """A step with its technique found and its options read."""

    step: Step
    technique: Technique
    options: Any

    @property
    def prefix(self) -> bool:
        """Whether its result is worth keeping: shrinking and training, on the module."""
        return self.technique.ACTS_ON == "module" and self.technique.PHASE <= Phase.RECOVER


@dataclass
class Work:
    """One job under way: what it may reach, and what it has found out so far."""

    job: Transform
    context: Context
    scratch: Path
    calibration: Samples
    facts: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, do: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            return do()
        finally:
            self.seconds[self._free(self.seconds, name)] = round(time.monotonic() - start, 3)

    def note(self, name: str, facts: dict[str, object]) -> None:
        self.facts[self._free(self.facts, name)] = facts

    @staticmethod
    def _free(taken: dict[str, Any], name: str) -> str:
        names = [name, *(f"{name} {number}" for number in range(2, 99))]
        return next(n for n in names if n not in taken)


def run(job: Transform, context: Context) -> Graph:
    """Raises Problem where a step, the export or the comparison with the module fails."""
    steps = ordered(job.strategy.steps)
    on_module = [s.step.technique for s in steps if s.technique.ACTS_ON == "module"]
    if on_module and not job.workload.has_layers:
        raise Problem(
            "unsupported",
            f"{', '.join(on_module)} needs the layers of the model, and a model given as {job.workload.form} is a graph"
            + (f" that cannot be lifted into layers: {job.workload.unlifted}" if job.workload.unlifted else ""),
            "give the nn.Module, or a state_dict with --model",
        )
    scratch = context.store.scratch()
    try:
        work = Work(job, context, scratch, Samples.open(context.store.path(job.workload.calibration.key)))
        path = _from_graph(work, steps) if job.workload.is_graph and not on_module else _from_module(work, steps)
        model = onnx.load(path)
        names.shorten(model)
        key = context.store.add(lambda folder: onnx.save(model, folder / "model.onnx"))
        facts = {**work.facts, "seconds": work.seconds}
        return Graph(key=key, signature=job.workload.signature, bytes=model.ByteSize(), facts=facts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ordered(steps: Sequence[Step]) -> list[Planned]:
    """By (module, then graph) and phase. Raises BadInput for unknown techniques and options."""
    planned = []
    for step in steps:
        technique = registry.find("technique", step.technique)
        options = decode(step.options, technique.Options, f"the options of {step.technique}")
        planned.append(Planned(step, technique, options))
    return sorted(planned, key=lambda p: (p.technique.ACTS_ON == "graph", p.technique.PHASE))


def _from_module(work: Work, steps: Sequence[Planned]) -> Path:
    signature, batches = work.job.workload.signature, parity.probes(work.calibration, work.job.workload.signature)
    first = [step for step in steps if step.prefix]
    rest = [step for step in steps if step.technique.ACTS_ON == "module" and not step.prefix]
    rewrites = [step for step in rest if step.technique.PHASE == Phase.REWRITE]
    onward = [step for step in steps if step.technique.ACTS_ON == "graph"]
    model, done = _prefix.longest(work.job, work.context, [step.step for step in first], work.note)
    for index, step in enumerate(first[done:], done):
        model = _applied(work, step, model)
        if index + 1 == len(first):
            _prefix.keep(work.job, work.context, [s.step for s in first], model, work.facts)
    float_outputs = parity.run_module(model, signature, batches)
    for index, step in enumerate(rest, 1):
        model = _applied(work, step, model)
        if index == len(rewrites):
            work.facts["rewritten"] = _same(float_outputs, parity.run_module(model, signature, batches), rewrites, work)
    module_outputs = parity.run_module(model, signature, batches) if rest else float_outputs
    path = work.scratch / "exported.onnx"
    exported = work.timed("export", lambda: export(model, signature, example_of(work.calibration, signature), path))
    work.facts["opset"] = exported["opset"]
    int8 = any(step.technique.PHASE == Phase.QUANTIZE for step in rest)
    if int8 and not graph.quantized(ir.load(path)):
        raise Problem("unsupported", "no operator of the exported graph is int8, though the module was quantized")
    found = parity.run_file(path, batches)
    facts = parity.compare(module_outputs, found, signature, parity.CLOSE if int8 else parity.EXACT)
    path = _graph_steps(work, onward, path)
    if onward or rest:
        found = parity.run_file(path, batches) if onward else found
        work.facts["parity"] = {"module": facts, "float": _related(float_outputs, found, work)}
    else:
        work.facts["parity"] = {"module": facts}
    return path


def _from_graph(work: Work, steps: Sequence[Planned]) -> Path:
    """The ONNX file as it came, tidied by exact rewrites, through the graph steps."""
    signature, batches = work.job.workload.signature, parity.probes(work.calibration, work.job.workload.signature)
    source = open_graph(work.context.store, work.job.workload)
    model = ir.load(source)
    graph.tidy(model, lower=False)
    path = work.scratch / "exported.onnx"
    graph.save(model, path)
    work.facts["opset"] = model.opset_imports.get("", 0)
    expected = parity.run_file(source, batches)
    facts = parity.compare(expected, parity.run_file(path, batches), signature, parity.EXACT)
    work.facts["parity"] = {"source": facts}
    path = _graph_steps(work, steps, path)
    if steps:
        found = parity.run_file(path, batches)
        work.facts["parity"] = {"source": facts, "float": _related(expected, found, work)}
    return path


def _graph_steps(work: Work, steps: Sequence[Planned], path: Path) -> Path:
    for step in steps:
        path = _applied(work, step, path)
    return path


def _related(expected: parity.Outputs, found: parity.Outputs, work: Work) -> dict[str, object]:
    return parity.compare(expected, found, work.job.workload.signature, parity.RELATED)


def _same(expected: parity.Outputs, found: parity.Outputs, steps: Sequence[Planned], work: Work) -> dict[str, object]:
    """Facts of the comparison. Raises Problem("mismatch") where rewriting changed what the module answers."""
    try:
        return parity.compare(expected, found, work.job.workload.signature, parity.EXACT)
    except Problem as problem:
        names = ", ".join(step.step.technique for step in steps)
        raise Problem("mismatch", f"the module is no longer the same after {names}: {problem.reason}") from problem


def _applied(work: Work, planned: Planned, model: Any) -> Any:
    """Apply one step under the strategy's seed; its facts are filed under the technique's name."""
    name, seed = planned.step.technique, work.job.strategy.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    work.context.log(f"{name} {planned.step.options}")
    tools = _tools(work, name)
    applied: Applied = work.timed(name, lambda: planned.technique.apply(model, planned.options, tools))
    work.note(name, applied.facts)
    return applied.model


def _tools(work: Work, name: str) -> Tools:
    job, store = work.job, work.context.store
    scratch = work.scratch / f"{len(work.seconds)}-{name}"
    scratch.mkdir()
    return Tools(
        calibration=work.calibration,
        train=Samples.open(store.path(job.workload.train.key)) if job.workload.train else None,
        teacher=lambda: open_module(store, job.workload),
        teacher_outputs=lambda: _prefix.teacher_outputs(job, work.context),
        signature=job.workload.signature,
        metric=job.workload.metric,
        seed=job.strategy.seed,
        scratch=scratch,
        log=work.context.log,
        device=resolve(job.device),
        epochs_share=job.fidelity.epochs,
        kept=lambda name, make: _prefix.kept(job, work.context, name, make),
    )
