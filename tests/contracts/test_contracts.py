"""The contracts notice what they promise to notice: one fault planted at a time."""

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import optuna
import pytest
import torch
from annotated_types import Ge

from petra_deploy.core import metrics, registry
from petra_deploy.core.errors import Problem
from petra_deploy.core.extension import Applied, Data, Knob, Phase
from petra_deploy.core.outcome import Engine
from petra_deploy.testing.contracts import (
    BackendContract,
    MetricContract,
    SamplerContract,
    TargetContract,
    TechniqueContract,
)
from petra_deploy.testing.contracts._contract import refusal
from petra_deploy.worker.backends import onnxruntime

FAMILY = "mlp"


@dataclass(frozen=True, kw_only=True)
class Options(Data):
    share: Annotated[float, Ge(0)] = 0.0


@dataclass
class Loose:
    share: float = 0.0


def shrink(model, options, tools):
    """An honest technique: smaller weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 - options.share)
    return Applied(model, {"share": options.share})


def in_place(model, options, tools):
    shrink(model, options, tools)
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    return Applied(copy.deepcopy(model), {"share": options.share})


def unseeded(model, options, tools):
    model = copy.deepcopy(model)
    generator = torch.Generator()
    generator.seed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return Applied(model, {"share": options.share})


def fails_when_strong(model, options, tools):
    if options.share > 0.6:
        raise Problem("unsupported", "too strong")
    return shrink(model, options, tools)


def plant(monkeypatch, kind, name, module):
    real = registry.find
    monkeypatch.setattr(registry, "find", lambda k, n: module if (k, n) == (kind, name) else real(k, n))
    return name


def technique(**changes):
    honest = {
        "PHASE": Phase.SHRINK, "ACTS_ON": "module", "Options": Options, "apply": shrink,
        "obstacles": lambda layout, target: (),
        "knobs": lambda layout, target: {"share": Knob.real(0.0, 0.9, ladder=(0.3, 0.6))},
    }  # fmt: skip
    return SimpleNamespace(**honest | changes)


def test_an_honest_technique_passes(monkeypatch, tmp_path):
    name, contract = plant(monkeypatch, "technique", "honest", technique()), TechniqueContract()
    contract.test_the_module_offers_what_the_protocol_asks(name)
    contract.test_options_are_frozen_typed_data_that_refuse_unknown_keys(name)
    contract.test_options_survive_json(name, FAMILY)
    contract.test_obstacles_are_sentences_for_every_target(name, FAMILY)
    contract.test_knobs_turn_options_that_exist(name, FAMILY)
    contract.test_apply_leaves_its_input_untouched(name, FAMILY)
    contract.test_the_same_seed_gives_the_same_result(name, FAMILY)
    contract.test_facts_say_what_changed(name, FAMILY)
    contract.test_it_works_with_every_knob_at_its_end(name, FAMILY)
    contract.test_the_result_exports_and_runs_at_batch_1_and_3(name, FAMILY, tmp_path)


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("test_apply_leaves_its_input_untouched", {"apply": in_place}),
        ("test_the_same_seed_gives_the_same_result", {"apply": unseeded}),
        ("test_facts_say_what_changed", {"apply": lambda m, o, t: Applied(m, {})}),
        ("test_facts_say_what_changed", {"apply": lambda m, o, t: Applied(m, {"removed": {1, 2}})}),
        ("test_obstacles_are_sentences_for_every_target", {"obstacles": lambda layout, target: "no"}),
        ("test_knobs_turn_options_that_exist", {"knobs": lambda layout, target: {"ratio": Knob.real(0, 1)}}),
        ("test_knobs_turn_options_that_exist",
         {"knobs": lambda layout, target: {"share": Knob.real(0, 1, ladder=(2,))}}),
        ("test_it_works_with_every_knob_at_its_end", {"apply": fails_when_strong}),
    ],
)  # fmt: skip
def test_a_faulty_technique_fails(monkeypatch, test, fault, request):
    name = plant(monkeypatch, "technique", request.node.name, technique(**fault))
    with pytest.raises((AssertionError, Problem, TypeError)):
        getattr(TechniqueContract(), test)(name, FAMILY)


def test_options_that_are_no_data_fail(monkeypatch):
    name = plant(monkeypatch, "technique", "loose", technique(Options=Loose))
    with pytest.raises(AssertionError):
        TechniqueContract().test_options_are_frozen_typed_data_that_refuse_unknown_keys(name)


def test_a_technique_that_sees_an_obstacle_is_not_tried(monkeypatch):
    name = plant(
        monkeypatch, "technique", "choosy", technique(obstacles=lambda layout, target: ("not here",), apply=None)
    )
    with pytest.raises(pytest.skip.Exception, match="not here"):
        TechniqueContract().test_apply_leaves_its_input_untouched(name, FAMILY)


@pytest.mark.parametrize(
    ("test", "make"),
    [
        ("test_rebuilt_on_the_same_storage_it_goes_on_as_the_living_one",
         lambda seed: optuna.samplers.RandomSampler(seed=seed)),
        ("test_the_same_seed_and_study_give_the_same_points", lambda seed: optuna.samplers.RandomSampler()),
        ("test_another_seed_gives_other_points", lambda seed: optuna.samplers.RandomSampler(seed=0)),
        ("test_it_asks_less_where_trials_fail",
         lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)),
    ],
)  # fmt: skip
def test_optunas_own_samplers_would_fail(monkeypatch, test, make):
    module = SimpleNamespace(create=lambda space, presets, seed: make(seed))
    name = plant(monkeypatch, "sampler", "raw", module)
    with pytest.raises(AssertionError):
        getattr(SamplerContract(), test)(name)


def test_a_metric_whose_direction_is_wrong_fails(tmp_path):
    path = tmp_path / "score.py"
    path.write_text(
        "import numpy as np\n"
        "from petra_deploy.core.metrics import metric\n"
        "@metric(higher_is_better=True)\n"
        "def error(outputs, targets):\n"
        "    return float(np.mean((outputs - targets) ** 2))\n"
    )
    name = f"{path}:error"
    assert metrics.find(name)[0].higher_is_better
    with pytest.raises(AssertionError, match="ruined"):
        MetricContract().test_a_perfect_model_is_judged_better_than_a_ruined_one(name)


def test_a_backend_that_forgets_its_settings_fails(monkeypatch, tmp_path):
    def build(graph, model, target, settings, folder):
        engine = onnxruntime.build(graph, model, target, {}, folder)
        return Engine(**{**engine.__dict__, "settings": {}})

    forgetful = SimpleNamespace(**{**vars(onnxruntime), "build": build})
    plant(monkeypatch, "backend", "onnxruntime", forgetful)
    with pytest.raises(KeyError):
        BackendContract().test_every_value_of_every_knob_builds_and_is_in_the_settings("onnxruntime", tmp_path)


def test_a_figure_without_a_source_fails(monkeypatch, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nsummary = "mine"\nruntime = "onnxruntime"\ndevice = "cpu"\nmemory_gb = 8.0\n')
    monkeypatch.setattr("petra_deploy.core.machine.targets", lambda: {"mine": Path(path)})
    with pytest.raises(AssertionError, match="memory_gb has no source"):
        TargetContract().test_nothing_is_wrong_with_its_file("mine")


def test_what_is_not_refused_is_noticed():
    with pytest.raises(AssertionError, match="not refused"):
        refusal(lambda: None)
