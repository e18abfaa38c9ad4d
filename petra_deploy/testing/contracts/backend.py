"""The contract of a backend: what it builds computes what the graph says, however often it is opened.

It is tried on a target of its own that is here; where there is none, its tests are skipped and say so.
"""

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from petra_deploy.core import files, machine
from petra_deploy.core.extension import Backend
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.plan import Knob
from petra_deploy.core.target import Target
from petra_deploy.testing.contracts._contract import Contract, found, refusal, sentences, skip
from petra_deploy.testing.contracts._graphs import exported, feeds
from petra_deploy.worker.artifact import attribution

Array = NDArray[Any]
_TRIED = ("cnn", "mlp")  # what onnx's reference evaluator runs in a moment
_FURTHEST = 1e-2  # of the largest output: a GPU may multiply in TF32


class BackendContract(Contract):
    kind = "backend"

    def test_the_module_offers_what_the_protocol_asks(self, backend: str) -> None:
        module = offered(backend)
        for name in ("obstacles", "knobs", "build", "open", "describe"):
            assert callable(getattr(module, name, None)), f"it has no function {name}"
        assert all(isinstance(version, str) and version for version in module.describe().values())

    def test_obstacles_are_sentences_and_knobs_are_choices_or_ranges(self, backend: str) -> None:
        module = found("backend", backend)
        for name in machine.targets():
            target = machine.resolve(name)
            sentences(module.obstacles(target))
            assert all(isinstance(knob, Knob) and knob.per is None for knob in module.knobs(target).values())

    def test_the_engine_agrees_with_the_reference_at_any_batch(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        for family in _TRIED:
            engine, folder = built(module, target, family, tmp_path / family)
            with module.open(folder, engine.settings) as runner:
                for rows in (1, 3):
                    given = feeds(family, rows)
                    for name, ours, theirs in zip(
                        reference(family, rows), runner.run(given), reference(family, rows).values(), strict=True
                    ):
                        assert ours.dtype == theirs.dtype, name
                        assert ours.shape == theirs.shape, name
                        assert np.abs(ours - theirs).max() <= _FURTHEST * np.abs(theirs).max(), name

    def test_an_engine_can_be_opened_twice_at_once_and_closed_twice(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        engine, folder = built(module, target, "mlp", tmp_path / "mlp")
        given = feeds("mlp", 3)
        first, second = module.open(folder, engine.settings, seed=0), module.open(folder, engine.settings, seed=1)
        before = second.run(given)
        first.close()
        first.close()
        for ours, theirs in zip(second.run(given), before, strict=True):
            assert np.array_equal(ours, theirs)
        second.close()
        with module.open(folder, engine.settings) as again:
            assert again.run(given)[0].shape == before[0].shape
        again.close()

    def test_a_profiler_tells_what_ran_for_every_layer(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        if not hasattr(module, "profile"):
            skip(f"{backend} has no profiler")
        for family in _TRIED:
            engine, folder = built(module, target, family, tmp_path / family)
            scratch = tmp_path / f"{family}-scratch"
            scratch.mkdir()
            ran = module.profile(folder, engine.settings, [feeds(family, 1)], 5, scratch, seed=0)
            assert ran.call_us > 0
            assert all(one.name and one.operator and one.us >= 0 for one in ran.operators)
            layers = attribution.Layers(onnx.load(str(folder / "model.onnx"), load_external_data=False))
            places = layers.attribute(ran.operators)
            assert {layer for place, _ in places for layer in place} == set(layers.names)

    def test_the_engine_says_how_it_was_built_and_survives_json(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        engine, folder = built(module, target, "mlp", tmp_path / "mlp")
        assert engine.backend == backend
        assert engine.versions == module.describe()
        assert 0 < engine.bytes <= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert files.decode(json.loads(files.dumps(engine)), Engine, "the engine") == engine

    def test_every_value_of_every_knob_builds_and_is_in_the_settings(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        for name, knob in module.knobs(target).items():
            for value in knob.choices or (knob.low, knob.high):
                setting = int(value) if knob.kind == "integer" else value
                engine, folder = built(module, target, "mlp", tmp_path / f"{name}-{value}", {name: setting})
                assert engine.settings[name] == setting
                with module.open(folder, engine.settings) as runner:
                    assert runner.run(feeds("mlp", 1))

    def test_the_same_graph_and_settings_give_the_same_settings(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        first, _ = built(module, target, "mlp", tmp_path / "first")
        second, _ = built(module, target, "mlp", tmp_path / "second", first.settings)
        assert first.settings == second.settings

    def test_unknown_settings_are_refused(self, backend: str, tmp_path: Path) -> None:
        module, target = here(backend)
        given = {"no_such_setting": 1}
        assert "no_such_setting" in refusal(lambda: built(module, target, "mlp", tmp_path / "mlp", given))


def offered(name: str) -> Any:
    """The backend's module; the test is skipped where its runtime is not installed."""
    if not machine.installed(name):
        skip(f"{name} is not installed")
    return found("backend", name)


def here(name: str) -> tuple[Any, Target]:
    """The backend, and a target that it can serve on this machine."""
    module: Backend = offered(name)
    for known in machine.targets():
        target = machine.resolve(known)
        if name in target.other_runtimes:
            target = replace(target, runtime=name, precisions=target.other_runtimes[name], other_runtimes={})
        if target.runtime == name and machine.present(target) and not module.obstacles(target):
            return module, target
    skip(f"no target of {name} is here")


def built(
    module: Any, target: Target, family: str, folder: Path, settings: Mapping[str, object] | None = None
) -> tuple[Engine, Path]:
    """The engine and where it lies after it was moved, as the store does."""
    model, signature = exported(family)
    folder.mkdir()
    source, making = folder / "source.onnx", folder / "making"
    source.write_bytes(model)
    making.mkdir()
    graph = Graph(key="graph", signature=signature, bytes=len(model))
    engine: Engine = module.build(graph, source, target, settings or {}, making)
    source.unlink()
    assert engine.graph == "graph"
    assert engine.signature == signature
    return engine, making.rename(folder / "engine")


@functools.cache
def reference(family: str, rows: int) -> Mapping[str, Array]:
    """The outputs by name, of onnx's own evaluator: plain numpy, no optimization."""
    from onnx.reference import ReferenceEvaluator

    model, signature = exported(family)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        outputs = ReferenceEvaluator(str(path)).run(None, feeds(family, rows))
    return {spec.name: np.asarray(value) for spec, value in zip(signature.outputs, outputs, strict=True)}
