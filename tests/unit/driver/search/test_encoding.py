from dataclasses import replace

from petra_deploy.core import files
from petra_deploy.core.plan import Group, Knob, Offer, Phase
from petra_deploy.driver.search.cost_model import CostModel, epochs_of, remaining_share
from petra_deploy.driver.search.encoding import Encoding
from tests.unit.driver.search import simulation
from tests.unit.driver.search.simulation import options


def test_the_first_preset_quantizes_and_shrinks_nothing():
    encoding = simulation.encoding()
    first = encoding.decode(encoding.presets()[0], allowance=10)
    assert [step.technique for step in first.steps] == ["quantize_inc"]


def test_presets_climb_the_ladder():
    encoding = simulation.encoding()
    shares = [remaining_share(encoding.decode(p, allowance=10), encoding.plan) for p in encoding.presets()]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.1 < shares[1] < 1.0


def test_sensitive_groups_keep_more_when_steered():
    encoding = simulation.encoding()
    genome = {**encoding.presets()[3], "prune.ratios.steer": 1.0}
    ratios = options(encoding.decode(genome, allowance=10), "prune")["ratios"]
    assert ratios["layer0"] > ratios["layer4"] > ratios["layer7"]
    unsteered = options(encoding.decode({**genome, "prune.ratios.steer": 0.0}, allowance=10), "prune")["ratios"]
    assert len(set(unsteered.values())) == 1


def test_blocks_go_least_sensitive_first():
    encoding = simulation.encoding()
    strategy = encoding.decode({**encoding.presets()[2], "drop_blocks.blocks": 0.5}, allowance=10)
    assert options(strategy, "drop_blocks")["blocks"] == ["block0", "block1"]


def test_options_settled_by_the_target_are_in_the_step():
    encoding = simulation.encoding()
    assert options(encoding.decode(encoding.presets()[2], allowance=10), "prune")["round_to"] == 16


def test_more_time_buys_more_epochs_and_a_smaller_network_gets_more_of_them():
    encoding = simulation.encoding(train_seconds_per_row=1e-2)
    mild, strong = encoding.presets()[1], encoding.presets()[-1]
    assert epochs_of(encoding.decode(mild, allowance=40)) > epochs_of(encoding.decode(mild, allowance=20))
    assert epochs_of(encoding.decode(strong, allowance=20)) > epochs_of(encoding.decode(mild, allowance=20))


def test_each_quantizer_and_none_can_be_reached():
    encoding = simulation.encoding()
    found = {
        tuple(s.technique for s in encoding.decode({"quantize": gene}, allowance=1).steps) for gene in (0.1, 0.5, 0.9)
    }
    assert found == {(), ("quantize_inc",), ("quantize_ort",)}


def test_a_neighbour_differs_in_precision_only():
    encoding = simulation.encoding()
    genome = encoding.presets()[2]
    own = encoding.decode(genome, allowance=10, epochs=7)
    assert files.canonical(own) == files.canonical(encoding.decode(genome, allowance=1, epochs=7.0))
    for other in encoding.neighbours(genome):
        strategy = encoding.decode(other, allowance=3, epochs=7)
        phases = {offer.technique: offer.phase for offer in encoding.plan.offers}
        unquantized = [s for s in strategy.steps if phases[s.technique] is not Phase.QUANTIZE]
        assert unquantized == [s for s in own.steps if phases[s.technique] is not Phase.QUANTIZE]
        assert strategy != own


def test_decoding_is_a_function():
    encoding = simulation.encoding()
    genome = encoding.presets()[3]
    assert encoding.decode(genome, allowance=5) == simulation.encoding().decode(genome, allowance=5)


def test_a_step_that_the_target_settles_is_in_every_candidate_and_alone_in_the_first():
    made = simulation.plan()
    half = Offer(technique="half", phase=Phase.FINISH, acts_on="graph", settled=True)
    plan = replace(made, offers=(*made.offers, half))
    encoding = Encoding(plan, CostModel(plan, fixed=1.0), 0)
    decoded = [[s.technique for s in encoding.decode(p, allowance=10).steps] for p in encoding.presets()]
    assert decoded[0] == ["half"]
    assert decoded[1] == ["quantize_inc", "half"]
    assert all(names[-1] == "half" for names in decoded)
    assert not any("half" in gene for gene in encoding.space.names)


def test_a_strength_without_known_good_values_is_left_out_by_presets_and_by_half_of_its_range():
    plan = simulation.plan()
    seldom = Offer(
        technique="low_rank", phase=Phase.SHRINK, acts_on="module",
        knobs={"ratios": Knob.real(0.0, 0.9, per="channels", strength=True)},
    )  # fmt: skip
    plan = replace(plan, offers=(*plan.offers, seldom))
    encoding = Encoding(plan, CostModel(plan, fixed=1.0), 0)
    for preset in encoding.presets():
        assert "low_rank" not in [step.technique for step in encoding.decode(preset, allowance=10).steps]
    shares = {}
    for gene in (0.49, 0.6, 1.0):
        strategy = encoding.decode({**encoding.presets()[2], "low_rank.ratios": gene}, allowance=10)
        found = [step.options["ratios"]["layer0"] for step in strategy.steps if step.technique == "low_rank"]
        shares[gene] = found[0] if found else 0.0
    assert shares[0.49] == 0.0
    assert 0.0 < shares[0.6] < shares[1.0]


def test_a_strength_of_its_own_at_the_low_end_leaves_the_step_out():
    plan = simulation.plan()
    halving = Offer(
        technique="downscale", phase=Phase.SHRINK, acts_on="module",
        knobs={"factor": Knob.real(1.0, 4.0, strength=True)},
    )  # fmt: skip
    plan = replace(plan, offers=(*plan.offers, halving))
    encoding = Encoding(plan, CostModel(plan, fixed=1.0), 0)
    assert encoding.decode({"downscale.factor": 0.3}, allowance=10).steps == ()
    assert options(encoding.decode({"downscale.factor": 1.0}, allowance=10), "downscale") == {"factor": 4.0}


def test_parts_stay_in_float_most_sensitive_first_and_none_at_gene_zero():
    encoding = simulation.encoding()
    layout = encoding.plan.layout
    parts = tuple(
        Group(name=name, kind="precision", width=1, parameters=9, macs=0, sensitivity=damage)
        for name, damage in (("layer0", 0.1), ("layer4", 0.9), ("layer7", 0.5), ("block0", 0.2))
    )
    knob = Knob.subset("precision", high=0.5, strength=False, most_sensitive=True)
    offers = tuple(
        replace(offer, knobs={**offer.knobs, "keep_float": knob}) if offer.technique == "quantize_inc" else offer
        for offer in encoding.plan.offers
    )
    plan = replace(encoding.plan, offers=offers, layout=replace(layout, groups=(*layout.groups, *parts)))
    mixed = replace(encoding, plan=plan)
    genome = mixed.presets()[0]
    assert mixed.decode(genome, allowance=10).steps == encoding.decode(genome, allowance=10).steps
    halved = mixed.decode({**genome, "quantize_inc.keep_float": 1.0}, allowance=10)
    assert options(halved, "quantize_inc")["keep_float"] == ["layer4", "layer7"]
    blocks = mixed.decode({**genome, "quantize_inc.keep_float": 1.0, "drop_blocks.blocks": 0.0}, allowance=10)
    assert remaining_share(blocks, plan) == remaining_share(encoding.decode(genome, allowance=10), encoding.plan)
