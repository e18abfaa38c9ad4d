"""The steps of a bundle's strategy again, with another version of a runtime: quantizers use the runtime's own tools.

    run = run_of(bundle, manifest, store)               # a Run; or why there is none, in words
    replayed = replay(bundle, manifest, run, now, then)

Where the run that made the bundle is still beside it, and its model and rows in the cache, its steps run again in
the session `then`, whose workers import the other version. Else the bundle's own file is taken, and that is said.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import PetraError, from_failure
from petra_deploy.core.job import Transform
from petra_deploy.core.outcome import Failed, Graph
from petra_deploy.core.request import Request
from petra_deploy.core.store import Store, digest_file
from petra_deploy.core.workload import Loaded, Signature
from petra_deploy.driver.build import graph_of
from petra_deploy.driver.bundle import recipe as recipes
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.session import Session

_ELSE = "something else is not what it was (petra-deploy, other packages, the number of threads)"
BROKEN = ("unsupported", "mismatch", "diverged", "crash")  # what a version of a runtime may be the reason of


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that made a bundle, its rows and its model being in the cache."""

    request: Request
    loaded: Loaded


@dataclass(frozen=True, kw_only=True)
class Replayed:
    graph: Graph | None  # None: `broken` says why
    replayed: bool = False
    same_file: bool = True  # as the bundle's, to the byte
    broken: str = ""
    note: str = ""  # what was done, as a sentence


def run_of(bundle: Path, manifest: Manifest, store: Store) -> Run | str:
    """The run beside the bundle; where there is none, why, in words."""
    for folder in bundle.resolve().parents[:2]:  # OUT/bundle, OUT/front/KEY
        if (folder / "run.json").is_file() and (folder / "loaded.json").is_file():
            break
    else:
        return "the run that made it is not beside it"
    try:
        request = files.read_json(folder / "run.json", Request)
        loaded = files.read_json(folder / "loaded.json", Loaded)
    except PetraError as error:
        return error.message
    workload = loaded.workload
    if workload.sha256 != manifest.model.sha256:
        return f"the run in {folder} is of another model"
    kept = (workload.model, workload.calibration.key, workload.selection.key, loaded.sealed.split.key)
    if any(key not in store for key in kept):
        return "the model and the rows of its run are not in this cache"
    return Run(request=request, loaded=loaded)


def replay(bundle: Path, manifest: Manifest, run: Run | str, now: Session, then: Session, version: str) -> Replayed:
    """The graph to build with the other version. Raises what a failure is that no version of a runtime explains."""
    if isinstance(run, str):
        return _as_it_is(bundle, manifest, then, run)
    recipe = recipes.read(bundle / "strategy.json")
    job = Transform(
        workload=run.loaded.workload, strategy=replace(recipe.strategy, runtime={}, backend=""),
        fidelity=recipe.fidelity, device=run.request.device, limits=then.limits(),
    )  # fmt: skip
    then.say(f"running the steps of {recipe.strategy.describe()} again with {version}")
    done = then.run(job)
    if isinstance(done, Failed):
        return _failed(done, job, bundle, manifest, now, then)
    sha256 = digest_file(then.store.path(done.value.key) / "model.onnx")
    if sha256 == manifest.candidate.sha256:
        note = f"its steps with {version} make the same file, to the byte"
        return Replayed(graph=done.value, replayed=True, note=note)
    control = now.run(job)
    if not isinstance(control, Failed) and control.value.key == done.value.key:
        note = f"its steps make one file with either version, and not the bundle's: {_ELSE}; the bundle's own is taken"
        return replace(_as_it_is(bundle, manifest, then, ""), replayed=True, note=note)
    note = f"its steps with {version} make another file than the bundle's"
    if isinstance(control, Failed) or _differs(control.value, manifest, now):
        note += f", and so they do with the installed version: {_ELSE}"
    return Replayed(graph=done.value, replayed=True, same_file=False, note=note)


def _failed(failed: Failed, job: Transform, bundle: Path, manifest: Manifest, now: Session, then: Session) -> Replayed:
    """The version's fault where the same steps work with the installed one; else the bundle's file is taken."""
    if failed.kind == "input":  # the model or its code has gone since
        return _as_it_is(bundle, manifest, then, failed.reason)
    if failed.kind not in BROKEN:
        raise from_failure(failed)
    if isinstance(now.run(job), Failed):
        return _as_it_is(bundle, manifest, then, f"with the installed version they fail too ({failed})")
    return Replayed(graph=None, broken=str(failed), note="its steps do not run again")


def _differs(graph: Graph, manifest: Manifest, session: Session) -> bool:
    return digest_file(session.store.path(graph.key) / "model.onnx") != manifest.candidate.sha256


def _as_it_is(bundle: Path, manifest: Manifest, session: Session, why: str) -> Replayed:
    signature = Signature(inputs=manifest.inputs, outputs=manifest.outputs)
    graph = graph_of(bundle / "model.onnx", signature, session.store)
    return Replayed(graph=graph, note=f"the file is the bundle's own: its steps were not replayed, because {why}")
