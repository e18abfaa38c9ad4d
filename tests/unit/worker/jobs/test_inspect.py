"""Inspect: which techniques apply, and why the others do not."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from petra_deploy.core import registry
from petra_deploy.core.files import decode, plain, read_toml, shipped
from petra_deploy.core.job import Inspect
from petra_deploy.core.plan import Inspected, Phase
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.testing.inline import Inline
from tests.models import CASES


@pytest.fixture
def target() -> Target:
    return read_toml(shipped("targets") / "cpu.toml", Target)


def test_every_registered_technique_is_offered_or_says_why_not(tmp_path: Path, target: Target) -> None:
    run = Inline(Store(tmp_path))
    for name in ("resnet", "lstm", "dicts"):
        found = run.must(Inspect(workload=CASES[name]().workload(run.store), target=target))
        offered = {offer.technique for offer in found.offers}
        assert offered | set(found.unavailable) == set(registry.names("technique"))
        assert not offered & set(found.unavailable)
        assert all(found.unavailable.values())


def test_what_fits_a_residual_network(tmp_path: Path, target: Target) -> None:
    run = Inline(Store(tmp_path))
    found = run.must(Inspect(workload=CASES["resnet"]().workload(run.store), target=target))
    offers = {offer.technique: offer for offer in found.offers}
    assert {"prune", "drop_blocks"} <= set(offers)
    assert offers["prune"].fixed == {"round_to": target.channel_step}
    assert offers["prune"].phase == Phase.SHRINK
    assert "no recurrent layer" in found.unavailable["shrink_rnn"]
    assert decode(plain(found), Inspected, "test") == found


def test_parts_that_must_stay_are_named_in_the_log(tmp_path: Path, target: Target) -> None:
    run = Inline(Store(tmp_path))
    found = run.must(Inspect(workload=CASES["hand_encoder"]().workload(run.store), target=target))
    assert "channels/head" in found.layout.refused
    assert any(line.startswith("channels/head stays as it is") for line in run.lines)


def test_without_training_rows_techniques_that_train_say_so(tmp_path: Path, target: Target) -> None:
    run = Inline(Store(tmp_path))
    found = run.must(Inspect(workload=CASES["mlp"]().workload(run.store, trainable=False), target=target))
    trainers = [n for n in registry.names("technique") if getattr(registry.find("technique", n), "NEEDS_TRAINING", 0)]
    for name in trainers:
        assert "no data to train on" in found.unavailable[name]


def test_of_an_onnx_file_the_operators_are_told_and_module_techniques_say_why_not(
    tmp_path: Path, target: Target
) -> None:
    run = Inline(Store(tmp_path))
    case = CASES["mlp"]()
    x = onnx.helper.make_tensor_value_info("x", 1, ["batch", 64])
    y = onnx.helper.make_tensor_value_info("output", 1, ["batch", 64])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["output"])], "g", [x], [y])
    key = run.store.add(lambda folder: onnx.save(onnx.helper.make_model(graph), folder / "model.onnx"))
    workload = replace(case.workload(run.store), form="onnx", model=key)
    found = run.must(Inspect(workload=workload, target=target))
    assert found.layout.operators == {"Relu": 1}
    assert found.layout.groups == ()
    for name in registry.names("technique"):
        if registry.find("technique", name).ACTS_ON == "module":
            assert "its graph cannot be lifted" in found.unavailable[name]


def test_a_model_that_fails_on_the_data_is_one_clear_failure(tmp_path: Path, target: Target) -> None:
    run = Inline(Store(tmp_path))
    case = CASES["mlp"]()
    wrong = replace(case, shapes={"x": (63,)})
    workload = replace(
        case.workload(run.store), calibration=replace(case.workload(run.store).calibration, key=run.store.add(
            lambda folder: __import__("petra_deploy.core.samples", fromlist=["Samples"]).Samples(
                {"x": wrong.tensors(4)[0].numpy()}
            ).save(folder)
        )),
    )  # fmt: skip
    failed = run(Inspect(workload=workload, target=target))
    assert getattr(failed, "kind", None) == "input"
    assert "first rows of the data" in failed.reason  # type: ignore[union-attr]
