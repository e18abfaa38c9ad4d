"""The ONNX file of a bundle as an engine of the target at hand: for `petra-deploy build`, and to finish a run there.

manifest = build(Path("bundle"), Asked(), logs, on_event)          # `petra-deploy build BUNDLE`
engine = built(folder, signature, target, settings, session)       # of folder/model.onnx
why = disagrees(engine, folder, split, place, session)             # empty where it computes what its file says
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from petra_deploy.core.errors import NotMet, TargetAbsent, from_failure
from petra_deploy.core.event import OnEvent
from petra_deploy.core.job import Build, Limits, Scored
from petra_deploy.core.metrics import SPECS
from petra_deploy.core.outcome import Budget, Engine, Failed, Graph, Outcome
from petra_deploy.core.request import Remote, Request
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import ModelSource, Signature, Split
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle import update
from petra_deploy.driver.bundle.manifest import ExampleInput, Manifest
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.place import RUNTIME, Place, find
from petra_deploy.driver.session import Session, open_session

_ROWS = 64  # made up, where those of the run are not here
_AGREEMENT = 5.0  # points that an engine may differ from its file on made-up rows: near ties, and FP16
BUILDS = 3  # of an engine that ships, where its runtime's builds differ
LOTTERY = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked: on which target, by which of its runtimes, where it is and how long it may take."""

    target: str = ""  # empty: the run's own
    runtime: str = ""
    remote: Remote | None = None
    seconds: float = 600.0


def build(bundle: Path, asked: Asked, logs: Path, on_event: OnEvent) -> Manifest:
    """Put the engine for this machine into a bundle; its figures stay what they were.

    Raises TargetAbsent where the bundle's target is not here, NotMet where the engine does not compute what
    its file says.
    """
    manifest = verify(bundle)
    request = Request(
        model=ModelSource(path=str(bundle.resolve() / "model.onnx")), target=asked.target or manifest.target.name,
        remote=asked.remote, budget=Budget(seconds=asked.seconds),
    )  # fmt: skip
    with open_session(request, logs, on_event) as session:
        place = at_hand(request.target, asked.runtime, session)
        signature = Signature(inputs=manifest.inputs, outputs=manifest.outputs)
        own = manifest.runtime.name == place.target.runtime  # else these are another runtime's settings
        settings = dict(recipes.read(bundle / "strategy.json").strategy.runtime) if own else {}
        session.say(f"building for {place.target.name} with {place.target.runtime}")
        engine = must(built(bundle, signature, place.target, several(place, settings), session))
        split = made_up(manifest.example_inputs, signature, session.store)
        if why := disagrees(engine, bundle, split, place, session):
            raise NotMet(f"the engine does not compute what {bundle / 'model.onnx'} says: {why}",
                         "another version of the runtime may; the bundle is as it was")  # fmt: skip
        return update.built(bundle, engine, session.store)


def at_hand(target: str, runtime: str, session: Session) -> Place:
    """Raises TargetAbsent where the target is not on this machine, nor on the one that was named."""
    place = find(target, runtime=runtime, look=session.look)
    if place.predicted:
        raise TargetAbsent(f"{place.target.name} is not here: it {place.why}",
                           "run this on a machine that has it, or name one that ssh reaches")  # fmt: skip
    return place


def built(
    path: Path, signature: Signature, target: Target, settings: dict[str, object], session: Session
) -> Engine | Failed:
    """Of an .onnx file, or of the model.onnx in a folder."""
    graph = graph_of(path / "model.onnx" if path.is_dir() else path, signature, session.store)
    done = session.run(Build(graph=graph, target=target, settings=settings, limits=session.limits()))
    return done if isinstance(done, Failed) else done.value


def graph_of(model: Path, signature: Signature, store: Store) -> Graph:
    """A copy of a self-contained .onnx file in the store."""

    def copy(entry: Path) -> None:
        shutil.copyfile(model, entry / "model.onnx")

    return Graph(key=store.add(copy), signature=signature, bytes=model.stat().st_size)


def must(engine: Engine | Failed) -> Engine:
    if isinstance(engine, Failed):
        raise from_failure(engine)
    return engine


def made_up(inputs: dict[str, ExampleInput], signature: Signature, store: Store) -> Split:
    """Rows within the ranges that the calibration data had."""
    random = np.random.default_rng(0)
    rows = {}
    for spec in signature.inputs:
        seen, dtype = inputs[spec.name], np.dtype(spec.dtype)
        shape = (_ROWS, *seen.shape)
        if dtype.kind in "biu":
            rows[spec.name] = random.integers(int(seen.low), int(seen.high) + 1, shape).astype(dtype)
        else:
            rows[spec.name] = random.uniform(seen.low, seen.high, shape).astype(dtype)
    return Split(key=store.add(Samples(rows).save), rows=_ROWS, labelled=False, origin="random")


def disagrees(engine: Engine, folder: Path, split: Split, place: Place, session: Session) -> str:
    """Why the engine is not its file, run as it is written by ONNX Runtime on the processor; empty where it is."""
    stand_in = replace(place.target, runtime=RUNTIME, device="cpu")
    plain = built(folder, engine.signature, stand_in, {"optimization": "none"}, session)
    if isinstance(plain, Failed):
        return str(plain)
    fields = {
        "split": split, "split_name": "made-up", "metric": SPECS["agreement"], "signature": engine.signature,
        "limits": Limits(seconds=max(session.left(), 120.0)),
    }  # fmt: skip
    said = session.run(Scored(engine=plain, target=stand_in, **fields))  # type: ignore[arg-type]
    if isinstance(said, Failed):
        return str(said)
    reference = said.value.outputs
    found = session.run(Scored(engine=engine, target=place.target, reference=reference, **fields))  # type: ignore[arg-type]
    if isinstance(found, Failed):
        return str(found)
    drop = found.value.drop.known() if found.value.drop else 0.0
    return f"they agree on {100 - drop:.1f}% only" if drop > _AGREEMENT else ""


def rebuilt(finalists: Sequence[Outcome], place: Place, session: Session) -> tuple[Outcome, ...]:
    """The finalists, each with the best of several builds where builds of one graph differ (TensorRT's do).

    Before they are measured, so that what ships is what was measured; where that fails the first build stays.
    """
    if place.predicted or place.target.runtime not in LOTTERY:
        return tuple(finalists)
    session.say(f"building each finalist {BUILDS} times, to keep its fastest engine")
    return tuple(_rebuilt(outcome, place, session) for outcome in finalists)


def _rebuilt(outcome: Outcome, place: Place, session: Session) -> Outcome:
    if outcome.graph is None or outcome.strategy.backend not in ("", *LOTTERY):
        return outcome
    settings = several(place, dict(outcome.strategy.runtime))
    done = session.run(
        Build(graph=outcome.graph, target=place.target_of(outcome.strategy), settings=settings, limits=session.limits())
    )
    if isinstance(done, Failed):
        session.say(f"{outcome.strategy.describe()} keeps its first engine: {done}", "warning")
        return outcome
    return replace(outcome, engine=done.value)


def several(place: Place, settings: dict[str, object]) -> dict[str, object]:
    return {**settings, "builds": BUILDS} if place.target.runtime in LOTTERY else settings
