"""The contract of a technique: says before trying, leaves its input alone, and what it makes exports.

Where a technique sees no obstacle in a family of models it must work there, with every knob in the
middle of its range and with every knob at the end: for a processor, or for a GPU where it is for those alone.
"""

import copy
import functools
import hashlib
import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from petra_deploy.core import files, machine
from petra_deploy.core.extension import Applied, Data, Technique
from petra_deploy.core.job import Transform
from petra_deploy.core.plan import Knob, Phase
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Fidelity, Step, Strategy
from petra_deploy.core.target import Target
from petra_deploy.testing.case import same
from petra_deploy.testing.contracts._contract import Contract, found, refusal, sentences, skip
from petra_deploy.testing.contracts._graphs import case_of, exported, feeds, layout_of
from petra_deploy.testing.contracts._knobs import knobs_at
from petra_deploy.testing.inline import Inline

Array = NDArray[Any]
_TARGETS = ("cpu", "l4")  # the first that a technique has no obstacle for
_EPOCHS = Fidelity(epochs=0.05)  # of what a knob in the middle asks for: training need not get anywhere


class TechniqueContract(Contract):
    kind = "technique"

    def test_the_module_offers_what_the_protocol_asks(self, technique: str) -> None:
        module = found("technique", technique)
        assert isinstance(module.PHASE, Phase)
        assert module.ACTS_ON in ("module", "graph")
        for name in ("obstacles", "knobs", "apply"):
            assert callable(getattr(module, name, None)), f"it has no function {name}"

    def test_options_are_frozen_typed_data_that_refuse_unknown_keys(self, technique: str) -> None:
        options: Any = found("technique", technique).Options
        assert issubclass(options, Data)
        assert getattr(options, "__dataclass_params__").frozen  # noqa: B009 - unknown to mypy
        assert get_type_hints(options).keys() >= {field.name for field in fields(options)}
        assert "no_such_option" in refusal(lambda: files.decode({"no_such_option": 1}, options, "the options"))

    def test_options_survive_json(self, technique: str, family: str) -> None:
        module = found("technique", technique)
        options = options_of(module, family, 0.5)
        text = files.dumps(options)
        assert files.decode(json.loads(text), module.Options, "the options") == options

    def test_obstacles_are_sentences_for_every_target(self, technique: str, family: str) -> None:
        module = found("technique", technique)
        for name in machine.targets():
            sentences(module.obstacles(layout_of(family), target_of(name)))

    def test_knobs_turn_options_that_exist(self, technique: str, family: str) -> None:
        module = found("technique", technique)
        known = {field.name for field in fields(module.Options)}
        knobs: Mapping[str, Knob] = module.knobs(layout_of(family), target_for(module, family))
        assert knobs.keys() <= known
        assert fixed_of(module, family).keys() <= known - knobs.keys()
        for name, knob in knobs.items():
            assert isinstance(knob, Knob)
            low, high = (0.0, knob.high) if knob.kind == "subset" else (knob.low, knob.high)
            assert all(low <= value <= high for value in knob.ladder), f"{name}: its ladder leaves its range"

    def test_apply_leaves_its_input_untouched(self, technique: str, family: str) -> None:
        assert tried(technique, family).untouched

    def test_the_same_seed_gives_the_same_result(self, technique: str, family: str) -> None:
        first, second = tried(technique, family).outputs
        for ours, theirs in zip(first, second, strict=True):
            assert same(ours, theirs)

    def test_facts_say_what_changed(self, technique: str, family: str) -> None:
        facts = tried(technique, family).facts
        assert facts, "facts are empty"
        assert files.plain(json.loads(files.dumps(facts))) == files.plain(facts)

    def test_it_works_with_every_knob_at_its_end(self, technique: str, family: str) -> None:
        module = fitting(technique, family)
        if not module.knobs(layout_of(family), target_for(module, family)):
            skip(f"{technique} has no knobs")
        with tempfile.TemporaryDirectory() as folder:
            applied = applied_to(module, input_of(module, family, Path(folder)), family, Path(folder), 1.0)
            assert all(np.isfinite(output).all() for output in outputs_of(applied, family))

    def test_the_result_exports_and_runs_at_batch_1_and_3(self, technique: str, family: str, tmp_path: Path) -> None:
        from petra_deploy.worker.model import parity

        module, store = fitting(technique, family), Store(tmp_path)
        step = Step(technique=technique, options=files.plain(options_of(module, family, 0.5)))
        workload = case_of(family).workload(store)
        if module.ACTS_ON == "graph":  # such a step takes any model's graph: no second export
            key = store.add(lambda folder: (folder / "model.onnx").write_bytes(exported(family)[0]))
            workload = replace(workload, model=key, form="onnx")
        job = Transform(workload=workload, strategy=Strategy(steps=(step,)), fidelity=_EPOCHS)
        graph = Inline(store).must(job)
        assert graph.facts[technique]
        path = store.path(graph.key) / "model.onnx"
        assert graph.bytes == path.stat().st_size
        for rows, outputs in zip((1, 3), parity.run_file(path, [feeds(family, 1), feeds(family, 3)]), strict=True):
            for spec, output in zip(workload.signature.outputs, outputs, strict=True):
                assert output.shape == (rows, *spec.shape[1:])
                assert np.isfinite(output).all()


@dataclass(frozen=True)
class Tried:
    """What came of applying a technique twice, by the same seed, to the same input."""

    untouched: bool
    outputs: tuple[list[Array], list[Array]]
    facts: dict[str, object]


@functools.cache
def tried(technique: str, family: str) -> Tried:
    module = fitting(technique, family)
    with tempfile.TemporaryDirectory() as folder:
        given = input_of(module, family, Path(folder))
        before = digest(given)
        first, second = (applied_to(module, given, family, Path(folder) / run, 0.5) for run in ("first", "second"))
        return Tried(before == digest(given), (outputs_of(first, family), outputs_of(second, family)), first.facts)


@functools.cache
def target_of(name: str) -> Target:
    """Its file, read once for all the tests that ask what a technique says of it."""
    return machine.resolve(name)


def fitting(technique: str, family: str) -> Any:
    """The module; the test is skipped where the technique itself says that it does not fit the family."""
    module: Technique = found("technique", technique)
    if reasons := module.obstacles(layout_of(family), target_for(module, family)):
        skip("; ".join(reasons))
    return module


def target_for(module: Any, family: str) -> Target:
    """A processor, or a GPU that the technique is for; a processor too where it is for neither."""
    targets = [target_of(name) for name in _TARGETS]
    return next((target for target in targets if not module.obstacles(layout_of(family), target)), targets[0])


def options_of(module: Any, family: str, height: float) -> Any:
    """The Options with every knob at `height` (0 to 1) of its range, and what the target settles."""
    layout = layout_of(family)
    chosen = knobs_at(module.knobs(layout, target_for(module, family)), height, layout)
    return files.decode(fixed_of(module, family) | chosen, module.Options, "what knobs and fixed say")


def fixed_of(module: Any, family: str) -> dict[str, object]:
    return dict(module.fixed(layout_of(family), target_for(module, family))) if hasattr(module, "fixed") else {}


def input_of(module: Any, family: str, folder: Path) -> Any:
    """What `apply` is given: a module of the test's own, or an ONNX file."""
    if module.ACTS_ON == "module":
        return copy.deepcopy(case_of(family).adapter())
    path = folder / "input.onnx"
    path.write_bytes(exported(family)[0])
    return path


def applied_to(module: Any, given: Any, family: str, scratch: Path, height: float) -> Applied:
    """As the transform job does it: every generator seeded before."""
    scratch.mkdir(exist_ok=True)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    tools = case_of(family).tools(scratch, rows=32, epochs_share=_EPOCHS.epochs)
    applied = module.apply(given, options_of(module, family, height), tools)
    assert isinstance(applied, Applied)
    return applied


def outputs_of(applied: Applied, family: str) -> list[Array]:
    """Of three rows, by the module itself or by ONNX Runtime."""
    from petra_deploy.worker.model import parity

    if isinstance(applied.model, Path):
        return parity.run_file(applied.model, [feeds(family, 3)])[0]
    with torch.no_grad():
        return [output.numpy() for output in applied.model(*case_of(family).tensors(3, seed=9))]


def digest(given: Any) -> str:
    """What must not change: a file's bytes; a module's layers, modes and tensors."""
    if isinstance(given, Path):
        return hashlib.sha256(given.read_bytes()).hexdigest()
    found = hashlib.sha256(f"{given!r} {[module.training for module in given.modules()]}".encode())
    for name, tensor in given.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()
