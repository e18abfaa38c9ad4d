from dataclasses import replace

import pytest

from petra_deploy.core.outcome import Failed
from petra_deploy.core.plan import Group, Knob, Offer, Phase
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.search.cost_model import CostModel, remaining_share
from tests.unit.driver.search import simulation


def pruned(ratio, plan):
    return Strategy(
        steps=(Step(technique="prune", options={"ratios": {g.name: ratio for g in plan.layout.of_kind("channels")}}),)
    )


def test_work_falls_with_the_square_of_the_width():
    plan = simulation.plan()
    assert remaining_share(Strategy(), plan) == 1.0
    assert remaining_share(pruned(0.5, plan), plan) == 0.25


def test_what_cannot_shrink_stays():
    plan = simulation.plan()
    heavier = replace(plan, layout=replace(plan.layout, parameters=16_000))  # half of it is in no group
    assert remaining_share(pruned(0.9, heavier), heavier) > 0.5


def test_a_dropped_block_takes_its_layers_along():
    plan = simulation.plan()
    groups = tuple(replace(g, name=f"block0.{g.name}") if i < 4 else g for i, g in enumerate(plan.layout.groups))
    block = Group(name="block0", kind="block", width=1, parameters=4000, macs=0)
    plan = replace(plan, layout=replace(plan.layout, groups=(*groups[:8], block)))
    dropped = Strategy(steps=(Step(technique="drop_blocks", options={"blocks": ["block0"]}),))
    assert remaining_share(dropped, plan) == 0.5


def test_only_what_is_searched_by_group_counts_and_layers_in_several_groups_count_once():
    plan = simulation.plan()
    again = tuple(replace(g, kind="matrix") for g in plan.layout.groups if g.kind == "channels")
    image = Group(name="image", kind="resolution", width=4, parameters=0, macs=80_000)
    offers = (
        *plan.offers,
        Offer(technique="low_rank", phase=Phase.SHRINK, acts_on="module",
              knobs={"levels": Knob.real(0.0, 0.95, per="matrix", strength=True)}),
        Offer(technique="downscale", phase=Phase.SHRINK, acts_on="module",
              knobs={"ratios": Knob.real(0.0, 0.75, per="resolution", strength=True)}),
    )  # fmt: skip
    plan = replace(plan, layout=replace(plan.layout, groups=(*plan.layout.groups, *again, image)), offers=offers)
    assert remaining_share(Strategy(), plan) == 1.0
    assert remaining_share(pruned(0.5, plan), plan) == 0.25
    worth = {"levels": {"layer0": 0.2}, "worth": {"layer0": 64, "layer1": 32}}
    assert remaining_share(Strategy(steps=(Step(technique="low_rank", options=worth),)), plan) == 1.0
    half = Step(technique="downscale", options={"ratios": {"image": 0.5}, "most": {"image": 4}})
    assert remaining_share(Strategy(steps=(half,)), plan) == 0.5


def test_a_kind_of_group_that_shares_out_no_work_changes_nothing():
    plan = simulation.plan()
    encoder = Group(name="layers", kind="encoder", width=64, parameters=8000, macs=80_000)
    wider = replace(plan, layout=replace(plan.layout, groups=(*plan.layout.groups, encoder)))
    assert remaining_share(pruned(0.5, wider), wider) == remaining_share(pruned(0.5, plan), plan)


def test_a_layer_of_a_recurrent_module_takes_its_share_along():
    plan = simulation.plan()
    rnn = Group(name="rnn", kind="units", width=64, parameters=8000, macs=80_000)
    upper = Group(name="rnn:1", kind="layer", width=1, parameters=6000, macs=60_000)
    offers = (Offer(technique="drop_rnn_layers", phase=Phase.SHRINK, acts_on="module",
                    knobs={"layers": Knob.subset("layer", ladder=(1.0,))}),)  # fmt: skip
    plan = replace(plan, layout=replace(plan.layout, groups=(rnn, upper), parameters=8000), offers=offers)
    step = Step(technique="drop_rnn_layers", options={"layers": ["rnn:1"]})
    assert remaining_share(Strategy(), plan) == 1.0
    assert remaining_share(Strategy(steps=(step,)), plan) == 0.25


def test_the_model_learns_from_what_trials_took():
    plan = simulation.plan(train_seconds_per_row=1e-2)
    cost = CostModel(plan, fixed=1.0)
    strategy = replace(pruned(0.0, plan), steps=(Step(technique="recover", options={"epochs": 2}),))
    before = cost.epoch_seconds(strategy)
    slow = replace(simulation.outcome(2, 0, strategy=strategy), seconds=70.0)
    cost.learn(replace(slow, graph=replace(slow.graph, facts={"seconds": {"recover": 60.0}})))
    assert cost.epoch_seconds(strategy) == 3 * before
    assert cost.fixed_seconds() == 10.0


def test_a_training_of_which_a_part_may_be_in_the_store_teaches_no_rate_but_what_is_beside_it():
    plan = simulation.plan(train_seconds_per_row=1e-2)
    cost = CostModel(plan, fixed=1.0)
    steps = tuple(Step(technique=name, options={"epochs": 2}) for name in ("recover", "quantize_qat"))
    strategy = Strategy(steps=steps)
    before = cost.epoch_seconds(strategy)
    both = replace(simulation.outcome(2, 0, strategy=strategy), seconds=70.0)
    cost.learn(replace(both, graph=replace(both.graph, facts={"seconds": {"recover": 40.0, "quantize_qat": 25.0}})))
    assert cost.epoch_seconds(strategy) == before
    assert cost.fixed_seconds() == 5.0


def test_on_an_accelerator_the_starts_of_kernels_are_the_least_and_fewer_layers_have_fewer():
    plan = simulation.plan(train_seconds_per_row=1e-2)
    groups = tuple(replace(g, name=f"block0.{g.name}") if i < 4 else g for i, g in enumerate(plan.layout.groups))
    block = Group(name="block0", kind="block", width=1, parameters=4000, macs=0)
    plan = replace(plan, layout=replace(plan.layout, groups=(*groups[:8], block)), train_starts_per_row=8e-3)
    cost = CostModel(plan, fixed=1.0)
    whole = cost.epoch_seconds(Strategy())
    narrow = cost.epoch_seconds(pruned(0.9, plan))
    shallow = Strategy(steps=(Step(technique="drop_blocks", options={"blocks": ["block0"]}), *pruned(0.9, plan).steps))
    assert narrow == pytest.approx(0.8 * whole)
    assert cost.epoch_seconds(shallow) == pytest.approx(0.4 * whole)


def test_a_training_that_met_its_limit_was_too_short_of_time_and_a_failed_build_says_nothing():
    plan = simulation.plan(train_seconds_per_row=1e-2)
    cost = CostModel(plan, fixed=1.0)
    strategy = Strategy(steps=(Step(technique="recover", options={"epochs": 2}),))
    before = cost.epoch_seconds(strategy)
    late = Failed(job="transform", kind="timeout", reason="the time limit was reached", seconds=8 * before)
    cost.learn(replace(simulation.outcome(2, 0, strategy=strategy), failed=replace(late, job="build")))
    assert cost.epoch_seconds(strategy) == before
    cost.learn(replace(simulation.outcome(2, 0, strategy=strategy), failed=late))
    assert cost.epoch_seconds(strategy) == pytest.approx(4 * before)
