import json
import time
from dataclasses import replace

import optuna
import pytest

from petra_deploy.core.errors import NotMet, OutOfDisk
from petra_deploy.core.event import silent
from petra_deploy.core.outcome import Failed, Goal, Outcome
from petra_deploy.core.plan import Group, Knob, Offer, Phase
from petra_deploy.core.strategy import FULL
from petra_deploy.driver.plan import affordable
from petra_deploy.driver.search import choose
from petra_deploy.driver.search.study import Search
from tests.unit.driver.search import simulation


def search(tmp_path=None, trials=20, evaluate=None, seed=0, sampler="cma", recorded=None, seconds=3600.0):
    encoding = simulation.encoding(seed)
    return Search(
        encoding=encoding,
        goal=Goal(max_drop=1.0),
        baseline=simulation.baseline(),
        trials=trials,
        deadline=time.monotonic() + seconds,
        evaluate=evaluate or (lambda strategy, left: simulation.evaluate(strategy, encoding.plan)),
        storage=f"sqlite:///{tmp_path}/study.db" if tmp_path else None,
        sampler=sampler,
        seed=seed,
        on_outcome=lambda number, outcome: recorded.append((number, outcome)) if recorded is not None else None,
        on_event=silent,
    )


def strategies(outcomes):
    return [outcome.strategy.steps for outcome in outcomes]


def test_no_strategy_is_evaluated_twice():
    outcomes = search(trials=30).run()
    seen = [json.dumps([[s.technique, s.options] for s in steps], sort_keys=True) for steps in strategies(outcomes)]
    assert len(outcomes) == 30
    assert len(set(seen)) == 30


def test_the_search_beats_its_presets():
    outcomes = search(trials=40).run()
    goal = Goal(max_drop=1.0)
    presets = choose.best(outcomes[:5], goal, simulation.SIZE)
    best = choose.best(outcomes, goal, simulation.SIZE)
    assert best.measurement.speedup.value > 1.1 * presets.measurement.speedup.value


@pytest.mark.parametrize("sampler", ["cma", "tpe", "random"])
def test_the_same_seed_and_answers_give_the_same_strategies(sampler):
    a = search(trials=14, sampler=sampler).run()
    b = search(trials=14, sampler=sampler).run()
    keep = [("prune", "ratios"), ("drop_blocks", "blocks")]

    def shapes(outcomes):
        return [[s.options.get(k) for s in o.strategy.steps for t, k in keep if s.technique == t] for o in outcomes]

    assert shapes(a) == shapes(b)


def test_a_resumed_study_repeats_nothing_and_goes_on(tmp_path):
    first = search(tmp_path, trials=7).run()
    again: list = []
    both = search(tmp_path, trials=15, recorded=again).run()
    assert strategies(both[:7]) == strategies(first)
    assert len(both) == 15
    assert len(again) == 8


def test_a_trial_that_was_cut_off_is_asked_once_more(tmp_path):
    def dies(strategy, left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, trials=5, evaluate=dies).run()
    outcomes = search(tmp_path, trials=6).run()
    assert [s.technique for s in outcomes[-1].strategy.steps] or len(outcomes) == 6
    study = optuna.load_study(study_name="petra", storage=f"sqlite:///{tmp_path}/study.db")
    assert not [t for t in study.trials if t.state == optuna.trial.TrialState.RUNNING]
    asked = [tuple(s.technique for s in o.strategy.steps) for o in outcomes]
    assert ("quantize_inc",) in asked  # the first preset, which was cut off


def test_a_failed_trial_is_recorded_and_the_search_goes_on():
    plan = simulation.plan()

    def sometimes(strategy, left):
        if any(step.technique == "quantize_ort" for step in strategy.steps):
            return Outcome(
                strategy=strategy, fidelity=FULL, failed=Failed(job="transform", kind="unsupported", reason="no")
            )
        return simulation.evaluate(strategy, plan)

    outcomes = search(trials=20, evaluate=sometimes).run()
    assert any(o.failed for o in outcomes)
    assert choose.best(outcomes, Goal(), simulation.SIZE)


def test_the_same_failure_five_times_ends_the_search_with_the_reason():
    def fails(strategy, left):
        return Outcome(strategy=strategy, fidelity=FULL, failed=Failed(job="build", kind="crash", reason="signal 11"))

    with pytest.raises(NotMet, match="signal 11"):
        search(evaluate=fails).run()


def test_a_full_disk_stops_the_search_resumably():
    def full(strategy, left):
        return Outcome(
            strategy=strategy, fidelity=FULL, failed=Failed(job="build", kind="disk", reason="no space left")
        )

    with pytest.raises(OutOfDisk):
        search(evaluate=full).run()


def test_training_that_cannot_fit_is_not_asked():
    plan = affordable(simulation.plan(train_seconds_per_row=1.0), 20.0)  # an epoch takes a quarter of an hour
    assert [offer.technique for offer in plan.offers] == ["quantize_inc", "quantize_ort"]
    assert "--time" in plan.unavailable["prune"]
    assert plan.unshrunk == plan.unavailable["prune"]
    assert affordable(simulation.plan(), 900.0) == simulation.plan()


def test_where_int8_gains_nothing_on_the_whole_model_it_is_not_asked_again():
    plan = simulation.plan()

    def slow_integers(strategy, left):
        found = simulation.evaluate(strategy, plan)
        quantized = any(step.technique.startswith("quantize") for step in strategy.steps)
        return simulation.outcome(0.6 if quantized else found.measurement.speedup.value, 0.1, strategy=strategy)

    outcomes = search(trials=8, evaluate=slow_integers).run()
    techniques = [{step.technique for step in o.strategy.steps} for o in outcomes]
    assert "quantize_inc" in techniques[0]
    assert not any(name.startswith("quantize") for names in techniques[1:] for name in names)


def with_seldom(trials):
    """A search in which one technique has no known-good strengths."""
    made = search(trials=trials)
    seldom = Offer(
        technique="downscale", phase=Phase.SHRINK, acts_on="module",
        knobs={"ratios": Knob.real(0.0, 0.75, per="resolution", strength=True)},
    )  # fmt: skip
    image = Group(name="image", kind="resolution", width=32, parameters=0, macs=0)
    plan = made.encoding.plan
    layout = replace(plan.layout, groups=(*plan.layout.groups, image))
    made.encoding = replace(made.encoding, plan=replace(plan, offers=(*plan.offers, seldom), layout=layout))
    return made


def techniques(outcomes):
    return [[step.technique for step in outcome.strategy.steps] for outcome in outcomes]


def test_what_presets_leave_out_is_tried_once_on_the_best_of_them():
    found = techniques(with_seldom(30).run())
    presets = len(simulation.encoding().presets())
    assert all("downscale" not in names for names in found[:presets])
    first = next(index for index, names in enumerate(found) if "downscale" in names)
    assert first < presets + 10  # the variants of the presets come before
    assert "prune" in found[first]


def test_what_presets_leave_out_is_tried_where_there_is_nothing_else():
    made = with_seldom(6)
    plan = made.encoding.plan
    kept = tuple(offer for offer in plan.offers if offer.technique in ("downscale", "recover"))
    made.encoding = replace(made.encoding, plan=replace(plan, offers=kept))
    assert "downscale" in techniques(made.run())[0]


def test_a_few_trials_leave_no_room_for_that():
    found = techniques(with_seldom(6).run())
    assert all("downscale" not in names for names in found)


def test_a_model_that_bears_more_than_the_strongest_preset_is_made_smaller_until_it_does_not():
    def robust(strategy, left):
        drop = simulation.evaluate(strategy, plan).score.drop.value / 8
        ratios = next((s.options["ratios"] for s in strategy.steps if s.technique == "prune"), {"all": 0.0})
        work = sum((1 - ratio) ** 2 for ratio in ratios.values()) / len(ratios)
        return simulation.outcome(1 / (work + 0.001), drop, strategy=strategy)

    plan, goal = simulation.plan(), Goal(max_drop=1.0)
    outcomes = search(trials=12, evaluate=robust).run()
    presets = choose.best(outcomes[:2], goal, simulation.SIZE).measurement.speedup.value
    assert choose.best(outcomes, goal, simulation.SIZE).measurement.speedup.value > 3 * presets


def test_presets_are_asked_from_the_strongest_down_to_the_first_that_holds():
    def blocks(outcomes):
        return [len(s.options["blocks"]) for o in outcomes for s in o.strategy.steps if s.technique == "drop_blocks"]

    def lossless(strategy, left):
        return simulation.outcome(simulation.evaluate(strategy, plan).measurement.speedup.value, 0.0, strategy=strategy)

    plan = simulation.plan()
    assert blocks(search(trials=4).run()) == [3, 2, 1]  # of 1.85, 1.21 and 0.51 points
    assert blocks(search(trials=3, evaluate=lossless).run()) == [3, 3]


def test_a_step_is_taken_once_from_each_best(tmp_path):
    search(tmp_path, trials=30).run()
    study = optuna.load_study(study_name="petra", storage=f"sqlite:///{tmp_path}/study.db")
    steps = [json.dumps([t.user_attrs["step"], t.params]) for t in study.trials if "step" in t.user_attrs]
    assert len(steps) >= 3
    assert len(set(steps)) == len(steps)


def _apart(tmp_path, trials, together):
    """Narrower layers and fewer pixels each hold, both drop `together`; very narrow ones are hardly faster."""
    encoding = simulation.encoding()
    pixels = Offer(technique="downscale", phase=Phase.SHRINK, acts_on="module",
                   knobs={"share": Knob.real(0.0, 0.75, strength=True)})  # fmt: skip
    encoding = replace(encoding, plan=replace(encoding.plan, offers=(*encoding.plan.offers, pixels)))

    def evaluate(strategy, left):
        options = {step.technique: step.options for step in strategy.steps}
        width = max(map(float, options.get("prune", {"ratios": {"": 0.0}})["ratios"].values()))
        smaller = float(options.get("downscale", {"share": 0.0})["share"])
        trained = [step.technique for step in strategy.steps].count("recover")
        drop = 6.0 if options.get("drop_blocks") or smaller > 0.6 else 1.4 if width > 0.1 and trained < 2 else 0.2
        drop = max(drop, together) if width > 0.1 and smaller > 0.1 else drop
        speedup = (3.0 + 3.3 * (width > 0.3) + 0.4 * width) * (2 if smaller > 0.3 else 1)
        return simulation.outcome(speedup, drop, strategy=strategy)

    outcomes = replace(search(tmp_path, trials=trials, evaluate=evaluate), encoding=encoding).run()
    study = optuna.load_study(study_name="petra", storage=f"sqlite:///{tmp_path}/study.db")
    return outcomes, [trial.user_attrs["joined"] for trial in study.trials if "joined" in trial.user_attrs]


def test_two_that_did_well_apart_are_tried_together_before_more_of_what_buys_little(tmp_path):
    outcomes, joined = _apart(tmp_path, 14, together=0.0)
    best = choose.best(outcomes, Goal(), simulation.SIZE)
    assert {"downscale", "prune"} <= {step.technique for step in best.strategy.steps}
    assert best.measurement.speedup.value > 12
    assert joined == [["downscale.share"]]


def test_two_that_do_not_hold_together_are_tried_so_once(tmp_path):
    _, joined = _apart(tmp_path, 40, together=6.0)
    assert ["downscale.share"] in joined
    assert len({tuple(names) for names in joined}) == len(joined)
