"""What the user names to be measured, a bundle, a folder with a model.onnx or an ONNX file, as an engine and its rows.

    subject = take("model.onnx", place, session, rows=Rows(data=DataSource(path="test.npz")))
    engine = engine_of(subject, session, threads=2)

A bundle is opened with the runtime and the settings that it was measured with. Rows are the data's, or made up.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from petra_deploy.core.errors import BadInput
from petra_deploy.core.job import Adopt, Build
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.profile import EngineFacts
from petra_deploy.core.store import digest_file
from petra_deploy.core.target import Target
from petra_deploy.core.workload import DataSource, MetricSpec, Signature, Split, TensorSpec
from petra_deploy.driver.build import graph_of, made_up
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.place import Place, on
from petra_deploy.driver.session import Session

_NATIVE = (".plan", ".engine", ".trt")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What engines are fed."""

    data: DataSource = field(default_factory=DataSource)  # none: made up
    inputs: tuple[str, ...] = ()  # --input
    metric: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    path: Path  # as it was named: a bundle, a folder or a file
    model: Path  # its .onnx file
    sha256: str
    target: Target  # with the runtime that serves it
    settings: dict[str, object]  # of the runtime
    graph: Graph
    split: Split
    metric: MetricSpec | None = None  # where the rows have labels, or one was named
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()

    @property
    def signature(self) -> Signature:
        return self.graph.signature


def locate(path: Path) -> Path:
    """The .onnx file that `path` names. Raises BadInput where it names none."""
    if path.is_dir():
        for folder in (path, path / "bundle"):
            if (folder / "model.onnx").is_file():
                return folder / "model.onnx"
        raise BadInput(f"{path} holds no model.onnx", "give a bundle, the --out folder of a run, or an .onnx file")
    if not path.exists():
        raise BadInput(f"no such file: {path}", "give a bundle or an .onnx file")
    if path.suffix in _NATIVE:
        raise BadInput(f"{path} is a TensorRT plan: native code, opened only as part of the bundle it was built in",
                       "give that bundle; `petra-deploy build BUNDLE` builds its plan here")  # fmt: skip
    if path.suffix != ".onnx":
        raise BadInput(f"{path} is no engine", "give a bundle or an .onnx file; `optimize` makes one of a model")
    return path


def take(path: Path, place: Place, session: Session, rows: Rows, *, runtime: str = "") -> Subject:
    """Raises BadInput where `path` names nothing that can be measured, NotMet where a bundle has changed."""
    model = locate(path)
    sha256 = digest_file(model)
    folder = model.parent
    manifest = verify(folder) if (folder / "manifest.json").is_file() and path != model else None
    target, settings, notes = place.target, dict[str, object](), tuple[str, ...]()
    if runtime:
        target = on(target, runtime)
    elif manifest is not None and manifest.runtime.name in target.other_runtimes:
        target = on(target, manifest.runtime.name)
    if manifest is not None and manifest.runtime.name == target.runtime:
        settings = dict(manifest.runtime.settings)
    elif manifest is not None:
        notes = (f"{path} ships with {manifest.runtime.name}: here {target.runtime} serves it, with its own settings",)
    subject = partial(Subject, path=path, model=model, sha256=sha256, target=target, settings=settings)
    if manifest is not None and rows.data == DataSource():
        signature = Signature(inputs=manifest.inputs, outputs=manifest.outputs)
        split = made_up(manifest.example_inputs, signature, session.store)
        return subject(graph=graph_of(model, signature, session.store), split=split, manifest=manifest, notes=notes)
    adopted = session.must(
        Adopt(model=str(model.absolute()), data=rows.data, inputs=rows.inputs, metric=rows.metric,
              limits=session.limits())
    )  # fmt: skip
    return subject(graph=adopted.graph, split=adopted.split, metric=adopted.metric, manifest=manifest,
                   notes=(*notes, *adopted.notes))  # fmt: skip


def engine_of(subject: Subject, session: Session, *, threads: int | None = None) -> Engine:
    """Built for the subject's target, with `threads` in place of its own where given. Raises what the failure is."""
    settings = {**subject.settings, **({"threads": threads} if threads else {})}
    return session.must(
        Build(graph=subject.graph, target=subject.target, settings=settings, limits=session.limits())
    )  # fmt: skip


def facts_of(subject: Subject, engine: Engine) -> EngineFacts:
    return EngineFacts(
        name=subject.path.name if subject.path.name != "bundle" else subject.path.resolve().parent.name,
        file=str(subject.path), sha256=subject.sha256, bytes=subject.model.stat().st_size, runtime=engine.backend,
        settings=engine.settings, versions=engine.versions,
    )  # fmt: skip


def feeding(subject: Subject, other: Subject) -> Subject:
    """`subject` fed with the rows of `other`. Raises BadInput where their inputs differ."""
    ours, theirs = subject.signature.inputs, other.signature.inputs
    if len(ours) != len(theirs) or not all(_alike(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise BadInput(
            f"{subject.path} takes {_told(subject)}, and {other.path} {_told(other)}: they cannot be fed alike",
            "compare engines of the same inputs",
        )
    return replace(subject, split=other.split)


def _alike(a: TensorSpec, b: TensorSpec) -> bool:
    same = all(isinstance(x, str) or isinstance(y, str) or x == y for x, y in zip(a.shape, b.shape, strict=False))
    return (a.name, a.dtype, len(a.shape)) == (b.name, b.dtype, len(b.shape)) and same


def fixed_batch(*subjects: Subject) -> int | None:
    """The one batch size that they all take; None where any size will do."""
    sizes = [s.signature.inputs[0].shape[0] for s in subjects if not s.signature.dynamic_batch]
    return next((size for size in sizes if isinstance(size, int)), None)


def _told(subject: Subject) -> str:
    return ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in subject.signature.inputs)
