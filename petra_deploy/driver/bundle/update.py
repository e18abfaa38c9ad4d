"""A bundle again, with an engine that was built, or measured, on the target after it was written.

    manifest = built(bundle, engine, store)                                   # the engine's files; figures stay
    manifest = measured(folder.bundle, source, outcome, baseline, notes, store)

The new folder takes the old one's place whole; what the files have in common is copied from `source`.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.outcome import Engine, Outcome
from petra_deploy.core.store import Store, digest_file
from petra_deploy.core.target import Target
from petra_deploy.driver.bundle import manifest as m
from petra_deploy.driver.bundle import readme, triton
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle.verify import read_manifest
from petra_deploy.driver.bundle.write import BASELINE, MODEL, metric_facts, side, versions_of

_REWRITTEN = ("manifest.json", "README.md")
_SAID_WHEN_PREDICTED = "every latency, throughput and speedup is predicted"


def built(bundle: Path, engine: Engine, store: Store) -> m.Manifest:
    """The bundle with the engine for this machine in it."""

    def change(old: m.Manifest) -> m.Manifest:
        note = f"the engine was built with {engine.backend} on {datetime.now(UTC).date().isoformat()}"
        return replace(
            old,
            runtime=m.RuntimeFacts(name=engine.backend, settings=engine.settings),
            versions={**old.versions, **engine.versions},
            notes=(*(n for n in old.notes if not n.startswith("the engine was built with ")), note),
        )

    return _rewritten(bundle, bundle, engine, change, store)


def measured(
    folder: Path, source: Path, outcome: Outcome, baseline: Engine, target: Target, notes: tuple[str, ...], store: Store
) -> m.Manifest:
    """The bundle of `source` at `folder`, with what was measured of `outcome` on `target` in place of what was
    predicted, in its recipe's promise too.
    """
    engine, found = outcome.engine, outcome.measurement
    if engine is None or found is None:
        raise ValueError("only a measured outcome can ship")
    speedups = [figure.value for figure in found.speedups]
    batch = found.candidate[0].batch

    def change(old: m.Manifest) -> m.Manifest:
        kept = tuple(note for note in old.notes if _SAID_WHEN_PREDICTED not in note)
        return replace(
            old,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=m.TargetFacts(
                name=target.name, runtime=engine.backend, device=target.device, instructions=target.instructions
            ),
            baseline=side(BASELINE, baseline, found.baseline, speedups, store),
            candidate=side(MODEL, engine, found.candidate, speedups, store),
            speedup=m.Ratio.of(found.speedup, batch),
            speedup_over_fp16=m.Ratio.of(found.over_half[0], batch) if found.over_half else None,
            size_ratio=round(baseline.bytes / engine.bytes, 4),
            load_ms=found.load.value,
            peak_memory_bytes=found.peak_memory.value,
            metric=old.metric if outcome.test is None else metric_facts(outcome.test, old.metric),
            runtime=m.RuntimeFacts(name=engine.backend, settings=engine.settings),
            versions=versions_of(engine),
            machine=found.machine,
            notes=tuple(dict.fromkeys((*kept, *notes, *found.warnings))),
        )

    recipe = recipes.read(source / "strategy.json")
    drop = outcome.test.drop if outcome.test else None
    promise = recipes.Promise(speedup=found.speedup, drop=drop, size_ratio=round(baseline.bytes / engine.bytes, 4))
    return _rewritten(folder, source, engine, change, store, replace(recipe, target=target.name, promise=promise))


def _rewritten(
    folder: Path,
    source: Path,
    engine: Engine,
    change: Callable[[m.Manifest], m.Manifest],
    store: Store,
    recipe: recipes.Recipe | None = None,
) -> m.Manifest:
    old = read_manifest(source)
    with files.new_folder(folder) as draft:
        for name in old.files:
            if name not in _REWRITTEN:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, draft / name)
        for file in sorted(store.path(engine.key).iterdir()):
            shutil.copyfile(file, draft / file.name)
        if recipe is not None:
            files.write_json(draft / "strategy.json", recipe)
        made = change(old)
        (draft / "README.md").write_text(readme.text(made, triton.model_name(made.model.name)), encoding="utf-8")
        hashes = {p.relative_to(draft).as_posix(): digest_file(p) for p in sorted(draft.rglob("*")) if p.is_file()}
        made = replace(made, files=hashes)
        files.write_json(draft / "manifest.json", made)
    return made
