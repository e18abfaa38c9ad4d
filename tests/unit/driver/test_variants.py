"""Finalists in another runtime: built, scored and measured by the real ones, on a small network."""

import time
from dataclasses import replace

import pytest

from petra_deploy.core.event import Event
from petra_deploy.core.job import Limits
from petra_deploy.core.machine import installed, resolve
from petra_deploy.core.outcome import Figure, Front, Goal, Outcome
from petra_deploy.core.plan import Offer, Phase
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Fidelity, Step, Strategy
from petra_deploy.driver.bundle.write import Shipment
from petra_deploy.driver.evaluate import Case, evaluate
from petra_deploy.driver.place import Place
from petra_deploy.driver.session import Session
from petra_deploy.driver.variants import notes, variant, with_variants
from petra_deploy.testing.families import FAMILIES
from petra_deploy.testing.inline import Inline

INC = Offer(technique="quantize_inc", phase=Phase.QUANTIZE, acts_on="module", fixed={"lower": False})
QUANTIZED = Strategy(steps=(Step(technique="quantize_ort", options={"method": "minmax"}),))


def test_a_variant_has_the_options_that_the_other_runtime_settles() -> None:
    given = Strategy(
        steps=(Step(technique="quantize_inc", options={"lower": True, "algo": "kl"}),),
        runtime={"fusions": "no_skip_layer_norm"},
    )
    moved = variant(given, "openvino", (INC,))
    assert isinstance(moved, Strategy)
    assert moved.backend == "openvino"
    assert moved.runtime == {}
    assert moved.steps[0].options == {"lower": False, "algo": "kl"}
    assert moved.describe() == "quantize_inc in openvino"
    assert variant(QUANTIZED, "openvino", (INC,)) == "it has no quantize_ort"


@pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
def test_finalists_and_the_model_as_it_came_are_tried_in_the_other_runtime(store: Store) -> None:
    run, said = Inline(store), list[str]()
    workload = FAMILIES["cnn"]().workload(store)
    case = Case(workload=workload, place=Place(resolve("cpu")), batches=(1, 4))
    baseline = evaluate(Strategy(), Fidelity(rounds=1), case, run, Limits())
    assert baseline.engine
    assert baseline.score
    case = replace(case, baseline=baseline.engine, reference=baseline.score.outputs)
    finalist = evaluate(QUANTIZED, Fidelity(rounds=1), case, run, Limits())
    assert finalist.ok, finalist.failed

    def tried(seconds: float) -> tuple[Outcome, ...]:
        def hear(event: Event) -> None:
            said.append(event.text)

        session = Session(store=store, run=run, on_event=hear, started=time.monotonic(), seconds=seconds,
                          jailed=lambda: None)  # fmt: skip
        return with_variants([finalist], Goal(max_drop=100.0), case, baseline, session)

    own, theirs, plain = tried(900.0)
    assert own == finalist
    for outcome in (theirs, plain):
        assert outcome.ok, outcome.failed
        assert outcome.engine
        assert (outcome.engine.backend, outcome.strategy.backend) == ("openvino", "openvino")
        assert outcome.score
        assert outcome.score.drop is not None
        assert outcome.measurement
        assert outcome.measurement.speedup.origin == "measured"
    assert not plain.strategy.steps
    assert theirs.engine
    computed = theirs.engine.facts["precisions"]
    assert isinstance(computed, dict)
    assert sum(computed[name].get("Convolution", 0) for name in ("i8", "u8") if name in computed) > 0
    (faster,) = tried(1.0)
    assert faster.strategy.backend in ("", "openvino")
    assert "no time is left to try more" in said[-2]
    assert "the time is short" in said[-1]


def test_the_notes_say_what_is_the_runtimes_and_what_the_searchs(outcome: Outcome) -> None:
    def of(speedup: float, strategy: Strategy) -> Outcome:
        assert outcome.measurement
        figure = Figure(value=speedup, unit="ratio")
        return replace(outcome, strategy=strategy, measurement=replace(outcome.measurement, speedups=(figure,)))

    ours, theirs = of(3.0, QUANTIZED), of(6.0, replace(QUANTIZED, backend="openvino"))
    plain = of(1.5, Strategy(backend="openvino"))
    front = Front(outcomes=(theirs, replace(ours, test=ours.score), plain), best=0)
    assert notes(front, Goal(), 1) == (
        "the model as it came runs 1.50x as fast in openvino as in the baseline's runtime; "
        "what ships is 4.00x over that",
        "in the baseline's own runtime the fastest finalist reached 3.00x",
    )
    assert notes(replace(front, best=1), Goal(), 1)[0] == "in openvino the fastest finalist reached 6.00x"
    assert notes(Front(outcomes=(ours,), best=0), Goal(), 1) == ()


@pytest.fixture
def outcome(shipment: Shipment) -> Outcome:
    return shipment.chosen
