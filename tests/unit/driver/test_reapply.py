from petra_deploy.core.plan import Offer, Phase
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.driver.reapply import settled

OFFERS = (Offer(technique="quantize_ort", phase=Phase.QUANTIZE, acts_on="graph", fixed={"reduce_range": True}),)


def test_a_recipe_written_by_hand_gets_what_the_target_settles():
    given = Strategy(steps=(Step(technique="quantize_ort"), Step(technique="recover", options={"epochs": 3})))
    complete = settled(given, OFFERS)
    assert [step.options for step in complete.steps] == [{"reduce_range": True}, {"epochs": 3}]


def test_what_a_recipe_says_itself_stands():
    given = Strategy(steps=(Step(technique="quantize_ort", options={"reduce_range": False}),))
    assert settled(given, OFFERS) == given
