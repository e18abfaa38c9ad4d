"""Run a strategy again: on the same model to rebuild its bundle, or on the next training of it.

Search once, apply at each retraining: the same steps, the baseline of the model at hand, the test
split, and the same budget. Where the drop or the speedup no longer holds, the bundle is kept beside
and the run says so (exit 1).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.advice import HOLDS
from petra_deploy.core.errors import BadInput, NotMet, from_failure
from petra_deploy.core.event import OnEvent
from petra_deploy.core.folder import RunFolder
from petra_deploy.core.job import Inspect
from petra_deploy.core.machine import require
from petra_deploy.core.outcome import Front, Outcome
from petra_deploy.core.plan import Offer
from petra_deploy.core.request import Request
from petra_deploy.core.strategy import FULL, Strategy
from petra_deploy.driver.build import rebuilt
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle import write as bundle
from petra_deploy.driver.certify import certified, refuse_elsewhere
from petra_deploy.driver.confirm import chosen_of, confirm, with_half
from petra_deploy.driver.evaluate import evaluate
from petra_deploy.driver.optimize import Finished, load, measure_baseline
from petra_deploy.driver.place import find
from petra_deploy.driver.session import open_session


def apply(strategy: Path, request: Request, folder: RunFolder, on_event: OnEvent) -> Finished:
    """Rebuild from `strategy` (a strategy.json). Raises NotMet where its promise no longer holds."""
    recipe = recipes.read(strategy)
    with open_session(request, folder.logs, on_event) as session:
        wanted = request.runtime or recipe.runtime
        place = find(request.target, runtime=wanted, require_measured=request.require_measured, look=session.look)
        if request.certify:
            refuse_elsewhere(place.target)
        asked = replace(recipe.strategy, backend="") if request.runtime else recipe.strategy
        if asked.backend and not place.predicted and not place.elsewhere:
            require(place.target_of(asked).runtime)
        if place.predicted:
            session.say(place.sentence, "note")
        loaded = load(request, folder, session)
        inspected = session.must(
            Inspect(workload=loaded.workload, target=place.target_of(asked), limits=session.limits())
        )
        if obstacles := recipe.obstacles(inspected.layout):
            raise BadInput(
                f"{strategy} was made for another architecture: {'; '.join(obstacles[:3])}",
                "apply it to a model of the same architecture, or run optimize on this one",
            )
        case, baseline = measure_baseline(request, loaded, place, folder, session)
        complete = settled(asked, inspected.offers)
        session.say(f"applying {complete.describe()}")
        outcome = evaluate(complete, FULL, case, session.run, session.limits())
        folder.record(0, outcome)
        if outcome.failed:
            raise from_failure(outcome.failed)
        finalists = with_half(rebuilt([outcome], place, session), [outcome], case, session)
        confirmed = confirm(finalists, request.goal, case, baseline, loaded.sealed, session)
        built = next(o for o in confirmed.outcomes if o.strategy == complete)
        size = case.baseline.bytes if case.baseline else 1
        front = chosen_of([built], request.goal, size, sure=False)  # the user's own choice
        files.write_json(folder.front, front)
        broken = _broken(front, built, recipe.promise, request)
        destination = folder.path / "nearest" if broken else folder.bundle
        shipment = bundle.Shipment(
            chosen=built,
            baseline=baseline,
            workload=loaded.workload,
            target=place.target_of(complete),
            layout=inspected.layout,
            goal=request.goal,
            seed=request.seed,
            runtime=request.runtime or recipe.runtime,
            considered=1,
            test=built.test,
            notes=(
                *([place.sentence] if place.predicted else []),
                *built.notes,
                f"applied from {strategy.name}",
                *([broken] if broken else []),
            ),
        )
        if request.certify and not broken:
            shipment = certified(shipment, session)
        manifest = bundle.write(destination, shipment, session.store)
        if broken:
            raise NotMet(f"the strategy no longer holds: {broken}", f"what it gave is kept in {destination}")
        return Finished(front=front, trials=(outcome,), out=folder.path, manifest=manifest, bundle=folder.bundle)


def settled(strategy: Strategy, offers: Sequence[Offer]) -> Strategy:
    """`strategy` with the options that the target settles, where a step (written by hand) leaves them out."""
    fixed = {offer.technique: offer.fixed for offer in offers}
    steps = (replace(step, options={**fixed.get(step.technique, {}), **step.options}) for step in strategy.steps)
    return replace(strategy, steps=tuple(steps))


def _broken(front: Front, built: Outcome, promise: recipes.Promise | None, request: Request) -> str:
    """Why the promise is broken, or an empty string."""
    if not built.ok or built.measurement is None:
        return str(built.failed)
    if front.chosen is None:
        return front.why
    now = built.measurement.speedup.known()
    before = promise.speedup.value if promise and request.goal.objective == "latency" else None
    if before is not None and now < HOLDS * before and (built.measurement.speedup.high or now) < before:
        return f"the speedup is {now:.2f}x, where the strategy recorded {before:.2f}x"
    return ""
