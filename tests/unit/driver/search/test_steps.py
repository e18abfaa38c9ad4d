from dataclasses import replace

from petra_deploy.core.plan import Knob, Offer, Phase
from petra_deploy.driver.search.steps import active, extras, further, joined
from tests.unit.driver.search import simulation
from tests.unit.driver.search.simulation import option


def test_a_step_on_makes_every_strength_in_use_stronger_then_each_by_itself():
    encoding = simulation.encoding()
    genome = encoding.presets()[2]
    before = encoding.decode(genome, allowance=10)
    together, alike, *singly = [encoding.decode(g, allowance=10) for g in further(encoding, genome)]
    ratios, blocks = option(before, "prune", "ratios"), option(before, "drop_blocks", "blocks")
    assert all(option(together, "prune", "ratios")[name] > ratio for name, ratio in ratios.items())
    assert len(option(together, "drop_blocks", "blocks")) == len(blocks) + 1
    assert len(set(option(together, "prune", "ratios").values())) > 1
    assert len(set(option(alike, "prune", "ratios").values())) == 1
    assert len(option(alike, "drop_blocks", "blocks")) == len(blocks) + 1
    assert option(singly[0], "prune", "ratios") == ratios
    assert len(option(singly[0], "drop_blocks", "blocks")) == len(blocks) + 1
    assert option(singly[1], "drop_blocks", "blocks") == blocks
    assert all(option(singly[1], "prune", "ratios")[name] > ratio for name, ratio in ratios.items())


def test_groups_that_are_alike_are_steered_again():
    encoding = simulation.encoding()
    genome = {**encoding.presets()[2], "prune.ratios.steer": 0.0}
    together, steered, *_ = [encoding.decode(g, allowance=10) for g in further(encoding, genome)]
    assert len(set(option(together, "prune", "ratios").values())) == 1
    assert len(set(option(steered, "prune", "ratios").values())) > 1


def test_what_another_has_and_this_one_leaves_out_is_joined_to_it():
    encoding = simulation.encoding()
    narrow = {**encoding.presets()[2], "drop_blocks.blocks": 0.0}
    shallow = {**encoding.presets()[3], "prune.ratios": 0.0}
    both = joined(encoding, narrow, shallow)
    assert both == {**narrow, "drop_blocks.blocks": shallow["drop_blocks.blocks"]}
    assert joined(encoding, both, shallow) is None
    assert joined(encoding, narrow, narrow) is None


def test_there_is_no_step_on_from_the_strongest():
    encoding = simulation.encoding()
    genome = {**encoding.presets()[-1], "prune.ratios": 1.0, "drop_blocks.blocks": 1.0}
    assert further(encoding, genome) == []


def test_a_strength_that_is_left_out_is_begun_by_itself_only():
    encoding = simulation.encoding()
    genome = {**encoding.presets()[2], "drop_blocks.blocks": 0.0}
    found = [encoding.decode(g, allowance=10) for g in further(encoding, genome)]
    with_blocks = [s for s in found if any(step.technique == "drop_blocks" for step in s.steps)]
    assert with_blocks
    assert all(option(s, "prune", "ratios") == option(with_blocks[0], "prune", "ratios") for s in with_blocks)
    assert all(len(option(s, "drop_blocks", "blocks")) == 1 for s in with_blocks)


def test_what_changed_nothing_is_left_out_of_the_next_steps():
    plain = simulation.encoding()
    knobs = {"levels": Knob.real(0.0, 0.9, per="channels", strength=True)}  # no ladder: presets leave it out
    factors = Offer(technique="low_rank", phase=Phase.SHRINK, acts_on="module", knobs=knobs)
    encoding = replace(plain, plan=replace(plain.plan, offers=(*plain.plan.offers, factors)))
    genome = extras(encoding, encoding.presets()[2])[0]
    strategy = encoding.decode(genome, allowance=10)
    assert option(strategy, "low_rank", "levels")

    def after(counts):
        made = simulation.outcome(2, 0, strategy=strategy)
        facts = {"low_rank": {"parameters": counts}, "prune": {"parameters": [900, 900]}}
        return active(encoding, genome, replace(made, graph=replace(made.graph, facts=facts)))

    assert after([1000, 900]) == genome
    changed = {name for name, gene in after([1000, 1000]).items() if gene != genome[name]}
    assert changed == {"low_rank.levels"}
    left = encoding.decode(after([1000, 1000]), allowance=10)
    assert "low_rank" not in [step.technique for step in left.steps]
