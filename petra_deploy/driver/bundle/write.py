"""Write the bundle: the folder that ships, whole or not at all.

    keep_baseline(folder.baseline, baseline, store)
    manifest = write(folder.bundle, Shipment(chosen=..., baseline=..., test=..., ...), store)

    bundle/  model.onnx  strategy.json  manifest.json  example.py  README.md
             triton/<model>/config.pbtxt  triton/<model>/1/model.onnx

May be called again for a better candidate: the new folder takes the old one's place.
"""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from petra_deploy import __version__
from petra_deploy.core import cpus, files
from petra_deploy.core.errors import BadInput
from petra_deploy.core.machine import versions
from petra_deploy.core.outcome import Certified, Engine, Goal, Latency, Measurement, Outcome, Score
from petra_deploy.core.plan import Layout
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store, digest_file
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Split, Workload
from petra_deploy.driver.bundle import manifest as m
from petra_deploy.driver.bundle import readme, triton
from petra_deploy.driver.bundle.recipe import Architecture, Promise, Recipe

MODEL = "model.onnx"
BASELINE = "../baseline/model.onnx"  # of a bundle in its run folder


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """All that a bundle is made of. `chosen` and `baseline` have engines and figures."""

    chosen: Outcome
    baseline: Outcome
    workload: Workload
    target: Target
    layout: Layout
    goal: Goal
    seed: int
    runtime: str = ""  # that the user named for the whole run, the baseline too
    considered: int  # candidates evaluated, the failed ones too
    test: Score | None = None  # of `chosen` on the test split; None: its selection score stands
    certified: Certified | None = None
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> Score:
        found = self.test or self.chosen.score
        if found is None:
            raise ValueError("a bundle needs a score")
        return found

    @property
    def engine(self) -> Engine:
        return _engine(self.chosen)

    @property
    def measurement(self) -> Measurement:
        if self.chosen.measurement is None:
            raise ValueError("only a measured outcome can ship")
        return self.chosen.measurement


def write(folder: Path, shipment: Shipment, store: Store) -> m.Manifest:
    """Make `folder` the bundle of `shipment`; returns the manifest in it."""
    engine, notes = shipment.engine, [*shipment.workload.notes, *shipment.notes, *_islands(shipment.chosen)]
    name = triton.model_name(shipment.workload.name)
    with files.new_folder(folder) as draft:
        _copy(store.path(engine.key), draft)
        try:
            operators = engine.facts.get("operators")
            int8 = isinstance(operators, dict) and "DequantizeLinear" in operators
            config = triton.config(name, engine.signature, shipment.target, engine.settings, int8=int8)
        except BadInput as error:
            notes.append(f"no Triton repository: {error.message}")
        else:
            if shipment.target.device == "cpu":
                notes += triton.shortfalls(engine.backend, engine.settings)
            _copy(store.path(engine.key), draft / "triton" / name / "1")
            (draft / "triton" / name / "config.pbtxt").write_text(config, encoding="utf-8")
        files.write_json(draft / "strategy.json", _recipe(shipment))
        (draft / "example.py").write_text(_example(engine.backend), encoding="utf-8")
        made = _manifest(shipment, store, tuple(dict.fromkeys(notes)))
        (draft / "README.md").write_text(readme.text(made, name), encoding="utf-8")
        hashes = {p.relative_to(draft).as_posix(): digest_file(p) for p in sorted(draft.rglob("*")) if p.is_file()}
        made = replace(made, files=hashes)
        files.write_json(draft / "manifest.json", made)
    return made


def _islands(outcome: Outcome) -> Iterator[str]:
    """What was left in float because int8 ruined the answers, and how badly it alone does."""
    for technique, facts in (outcome.graph.facts if outcome.graph else {}).items():
        if isinstance(facts, dict) and facts.get("islands"):
            worst = ", ".join(f"{one['block']} ({one['sqnr_db']:.1f} dB)" for one in facts["culprits"])
            yield (
                f"{technique}: {', '.join(facts['islands'])} stayed in float, since int8 all over left "
                f"{facts['sqnr_db_without_islands']:.1f} dB of signal to noise at the outputs, and now it is "
                f"{facts['sqnr_db']:.1f} dB; in int8 alone: {worst}"
            )


def _example(backend: str) -> str:
    """A script that opens the engine with its runtime and numpy alone."""
    text, session = (
        Path(__file__).with_name(f"{name}.py.txt").read_text(encoding="utf-8")
        for name in ("example", f"example_{backend}")
    )
    imports, _, rest = session.partition("\n\n")
    return text.replace("<RUNTIME>", backend).replace("<IMPORTS>", imports).replace("<SESSION>", rest.strip())


def keep_baseline(folder: Path, baseline: Outcome, store: Store) -> None:
    """Put the baseline's engine into `folder`, so that the ratio can be measured again by anyone."""
    with files.new_folder(folder) as draft:
        _copy(store.path(_engine(baseline).key), draft)


def _copy(entry: Path, folder: Path) -> None:
    """The files of a store entry, as real copies: loaders refuse links, and the store is private."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(entry.iterdir()):
        shutil.copyfile(file, folder / file.name)


def _engine(outcome: Outcome) -> Engine:
    if outcome.engine is None:
        raise ValueError("only a built outcome can ship")
    return outcome.engine


def _manifest(shipment: Shipment, store: Store, notes: tuple[str, ...]) -> m.Manifest:
    engine, measured, workload, target = shipment.engine, shipment.measurement, shipment.workload, shipment.target
    speedups = [figure.value for figure in measured.speedups]
    baseline = side(BASELINE, _engine(shipment.baseline), measured.baseline, speedups, store)
    candidate = side(MODEL, engine, measured.candidate, speedups, store)
    return m.Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=m.TargetFacts(
            name=target.name, runtime=target.runtime, device=target.device, instructions=target.instructions
        ),
        model=m.ModelFacts(
            name=workload.name, form=workload.form, sha256=workload.sha256, parameters=shipment.layout.parameters
        ),
        files={},
        inputs=engine.signature.inputs,
        outputs=engine.signature.outputs,
        techniques=tuple(step.technique for step in shipment.chosen.strategy.steps),
        baseline=baseline,
        candidate=candidate,
        speedup=m.Ratio.of(measured.speedup, measured.candidate[0].batch),
        speedup_over_fp16=m.Ratio.of(measured.over_half[0], measured.candidate[0].batch)
        if measured.over_half
        else None,
        size_ratio=round(baseline.bytes / candidate.bytes, 4),
        load_ms=measured.load.value,
        peak_memory_bytes=measured.peak_memory.value,
        metric=_metric(shipment),
        certified=shipment.certified,
        holds_on=_holds_on(shipment),
        goal=shipment.goal,
        candidates_considered=shipment.considered,
        runtime=m.RuntimeFacts(name=engine.backend, settings=engine.settings),
        example_inputs=_example_inputs(workload.calibration, store),
        versions=versions_of(engine),
        machine=measured.machine,
        seed=shipment.seed,
        notes=tuple(dict.fromkeys((*notes, *measured.warnings))),
    )


def _holds_on(shipment: Shipment) -> tuple[str, ...]:
    """Kinds of processor: as certified, or all where no sum can saturate, or those that sum like this machine."""
    if shipment.target.device != "cpu":
        return ()
    if shipment.certified is not None:
        return shipment.certified.holds_on
    if shipment.engine.facts.get("may_saturate") == 0:
        return cpus.CPUS
    instructions = shipment.measurement.machine.get("instructions")
    return cpus.alike(cpus.kind(instructions if isinstance(instructions, list | tuple) else ()))


def side(file: str, engine: Engine, latencies: tuple[Latency, ...], speedups: list[float | None],
          store: Store) -> m.Side:  # fmt: skip
    by_batch = tuple(
        m.AtBatch(
            batch=latency.batch,
            latency_ms=m.Percentiles.of(latency),
            throughput_per_s=latency.throughput.value,
            speedup=speedup,
        )
        for latency, speedup in zip(latencies, speedups, strict=True)
    )
    rates = [entry.throughput_per_s for entry in by_batch if entry.throughput_per_s is not None]
    return m.Side(
        file=file,
        sha256=digest_file(store.path(engine.key) / MODEL),
        bytes=engine.bytes,
        latency_ms=by_batch[0].latency_ms,
        throughput_per_s=max(rates, default=None),
        by_batch=by_batch,
    )


def metric_facts(score: Score, before: m.MetricFacts) -> m.MetricFacts:
    """What another engine of the same file scored on the same split."""
    if score.drop is None:
        return before
    return replace(
        before, split=score.split, n=score.n, candidate=score.value, drop_points=score.drop.known(),
        baseline=before.baseline if score.baseline is None else score.baseline, low=score.drop.low,
        high=score.drop.high, origin=score.drop.origin,
    )  # fmt: skip


def _metric(shipment: Shipment) -> m.MetricFacts:
    score, spec, drop = shipment.score, shipment.workload.metric, shipment.score.drop
    own_baseline = drop is None  # the baseline itself ships: it has dropped nothing
    return m.MetricFacts(
        name=score.metric,
        split=score.split,
        n=score.n,
        baseline=score.value if own_baseline or score.baseline is None else score.baseline,
        candidate=score.value,
        drop_points=0.0 if drop is None else drop.known(),
        low=0.0 if drop is None else drop.low,
        high=0.0 if drop is None else drop.high,
        max_drop=shipment.goal.max_drop,
        higher_is_better=spec.higher_is_better,
        labelled=spec.needs_labels,
        data=shipment.workload.selection.origin,
        origin="measured" if drop is None else drop.origin,
    )


def _recipe(shipment: Shipment) -> Recipe:
    return Recipe(
        strategy=shipment.chosen.strategy,
        fidelity=shipment.chosen.fidelity,
        target=shipment.target.name,
        runtime=shipment.runtime,
        goal=shipment.goal,
        metric=shipment.workload.metric.name,
        architecture=Architecture.of(shipment.layout),
        promise=Promise(
            speedup=shipment.measurement.speedup,
            drop=shipment.score.drop,
            size_ratio=round(_engine(shipment.baseline).bytes / shipment.engine.bytes, 4),
        ),
        versions=versions_of(shipment.engine),
    )


def _example_inputs(split: Split, store: Store) -> dict[str, m.ExampleInput]:
    """Shapes and ranges only: no row of the user's data leaves in a bundle."""
    rows = Samples.open(store.path(split.key)).first(256)
    return {
        name: m.ExampleInput(
            shape=tuple(int(dim) for dim in values.shape[1:]), low=float(values.min()), high=float(values.max())
        )
        for name, values in rows.inputs.items()
    }


def versions_of(engine: Engine) -> dict[str, str]:
    return {**versions(), **engine.versions, "petra-deploy": __version__, "python": platform.python_version()}
