from dataclasses import replace

from petra_deploy.core.outcome import Goal
from petra_deploy.core.plan import Knob, Offer, Phase
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.search import proposals
from petra_deploy.driver.search.cost_model import trainings
from petra_deploy.driver.search.drops import Drops
from tests.unit.driver.search import simulation

GOAL = Goal(max_drop=1.0)


def proposed(drop, speedup=20.0, again=(), best=None, known=(), size=simulation.SIZE // 10):
    encoding = simulation.encoding()
    genome = encoding.presets()[3]
    strategy = encoding.decode(genome, allowance=10, epochs=8, again=again)
    outcome = simulation.outcome(speedup, drop, strategy=strategy, size=size)
    found = proposals.after(outcome, genome, best, GOAL, simulation.SIZE, encoding, Drops(), known)
    return [encoding.decode(p.genome, allowance=10, epochs=p.epochs, again=p.again) for p in found]


def names(strategy: Strategy) -> list[str]:
    return [step.technique for step in strategy.steps]


def training(strategy: Strategy) -> list[Step]:
    return [step for step in strategy.steps if step.technique == "recover"]


def test_one_within_the_limit_is_tried_in_other_precisions_with_the_same_training():
    found = proposed(0.3)
    assert [names(strategy)[-1] for strategy in found] == ["recover", "quantize_ort"]
    assert all(trainings(strategy) == [8] for strategy in found)


def test_a_fast_one_that_is_a_little_too_lossy_is_trained_on_at_half_the_rate():
    (found,) = proposed(2.0)
    first, second = training(found)
    assert names(found)[:-1] == ["drop_blocks", "prune", "recover", "recover"]
    assert trainings(found) == [8, 8]
    assert second.options["lr"] == first.options["lr"] / 2
    (again,) = proposed(2.0, again=(8,))
    assert trainings(again) == [8, 8, 16]


def test_what_is_far_too_lossy_or_slower_than_the_best_is_not_trained_on():
    assert proposed(3.6) == []
    assert proposed(2.0, best=simulation.outcome(25.0, 0.1)) == []
    assert proposed(1.9, again=(8, 16)) == []


def test_a_setting_that_the_build_names_is_tried_on_what_is_good_enough():
    plain = simulation.encoding()
    plan = replace(plain.plan, runtime={"fusions": Knob.choice("default", "no_skip_layer_norm")})
    encoding = replace(plain, plan=plan)
    genome = encoding.presets()[3]
    outcome = simulation.outcome(20, 0.3, strategy=encoding.decode(genome, allowance=10, epochs=8))
    assert outcome.engine is not None
    named = replace(outcome.engine, facts={"alternatives": {"fusions": "no_skip_layer_norm"}})

    def settings(found):
        decoded = [encoding.decode(p.genome, allowance=10, epochs=p.epochs) for p in found]
        return [strategy.runtime for strategy in decoded if strategy.steps == outcome.strategy.steps]

    def proposals_after(outcome):
        return proposals.after(outcome, genome, None, GOAL, simulation.SIZE, encoding, Drops())

    assert settings(proposals_after(outcome)) == []
    assert settings(proposals_after(replace(outcome, engine=named))) == [{"fusions": "no_skip_layer_norm"}]


def test_a_precision_that_was_slow_twice_is_not_tried_on_the_next_shape():
    encoding = simulation.encoding()

    def measured(preset, technique, speedup):
        genome = {**encoding.presets()[preset], "quantize": encoding.quantizer_gene(technique)}
        return simulation.outcome(speedup, 0.1, strategy=encoding.decode(genome, allowance=10, epochs=8))

    once = [measured(1, "quantize_inc", 10), measured(1, "quantize_ort", 8), measured(1, None, 9.5)]
    twice = [*once, measured(2, "quantize_inc", 20), measured(2, "quantize_ort", 15), measured(2, None, 12)]
    assert [names(s)[-1] for s in proposed(0.3, known=once)] == ["recover", "quantize_ort"]
    assert [names(s)[-1] for s in proposed(0.3, known=twice)] == ["recover"]
    smaller = proposed(0.3, known=twice, size=simulation.SIZE // 20)  # half the size: integers gain less
    assert [names(s)[-1] for s in smaller] == ["recover", "quantize_ort"]


def test_training_on_repeats_no_other_technique_that_trains():
    plain = simulation.encoding()
    knobs = {"epochs": Knob.integer(1, 10, log=True)}
    quantizer = Offer(technique="quantize_qat", phase=Phase.QUANTIZE, acts_on="module", knobs=knobs, order=-1)
    encoding = replace(plain, plan=replace(plain.plan, offers=(*plain.plan.offers, quantizer)))
    strategy = encoding.decode(encoding.presets()[3], allowance=10, epochs=8, again=(8,))
    assert names(strategy) == ["drop_blocks", "prune", "recover", "recover", "quantize_qat"]
    assert trainings(strategy) == [8, 8]


def test_the_epochs_of_recovery_are_not_those_of_quantization_aware_training():
    plain = simulation.encoding()
    knobs = {"epochs": Knob.integer(1, 10, log=True)}
    quantizer = Offer(technique="quantize_qat", phase=Phase.QUANTIZE, acts_on="module", knobs=knobs, order=-1)
    encoding = replace(plain, plan=replace(plain.plan, offers=(*plain.plan.offers, quantizer)))
    strategy = encoding.decode(encoding.presets()[3], allowance=10, epochs=46)
    epochs = {step.technique: step.options["epochs"] for step in strategy.steps if "epochs" in step.options}
    assert epochs["recover"] == 46
    assert epochs["quantize_qat"] <= 10  # its own range


def test_where_training_on_brought_little_it_is_asked_no_more():
    encoding = simulation.encoding()
    known = []
    for index, genome in enumerate(encoding.presets()[1:]):
        short, long = (encoding.decode(genome, allowance=10, epochs=8, again=again) for again in ((), (8,)))
        known += [simulation.outcome(9, 2.0 + index, strategy=short), simulation.outcome(9, 1.9 + index, strategy=long)]
    assert proposed(2.0)
    assert proposed(2.0, known=known) == []


def test_the_other_precisions_of_one_that_was_trained_on_keep_both_trainings():
    assert all(trainings(strategy) == [8, 8] for strategy in proposed(0.3, again=(8,)))
