"""Decide how a model file opens, and open it: the one place that knows all forms.

    opened = open_model(ModelSource(path="model.pt", factory="net.py:Net"), script=None)
    opened.form, opened.module, opened.source

What is refused without `--trust` is refused here, with the safe way.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.store import digest_file
from petra_deploy.core.workload import Form, ModelSource
from petra_deploy.worker.workload import factory, pickled, sniff, torchscript
from petra_deploy.worker.workload.data import Script
from petra_deploy.worker.workload.recorded import refusal
from petra_deploy.worker.workload.source import Source, floats, make

_PROGRAM = "is a program that runs when it is opened"
_TRUST = "add --trust if you trust whoever made this file; else export it to .onnx where it was made"


@dataclass(frozen=True)
class Opened:
    form: Form
    name: str  # for people: the file's stem
    sha256: str
    path: Path | None  # the file; None where a function alone made the model
    source: Source
    module: torch.nn.Module | None  # None: .pt2 and ONNX, which become a graph first
    readable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_model(model: ModelSource, script: Script | None) -> Opened:
    """Raises Problem("input") with one sentence and the next step."""
    maker = model.factory or (script.spec("model") if script and script.has("model") else None)
    maker = factory.absolute(maker) if maker else None
    if model.path is None:
        return _made(maker)
    path = Path(model.path).absolute()
    if model.cloudpickled:
        source = Source(kind="cloudpickle", file="model.pkl", name="the model")
        module, notes = make(source, path)
        return Opened("module", type(module).__name__, digest_file(path), path, source, module, notes=notes)
    found = sniff.sniff(path)
    opened = Opened(
        "module", path.stem, digest_file(path), path, Source(kind="plain", file="model.pt", name=path.name), None
    )
    if found.kind == "onnx":
        return replace(opened, form="onnx", source=replace(opened.source, kind="onnx"))
    if found.kind in ("torchscript", "exported"):
        form: Form = "torchscript" if found.kind == "torchscript" else "exported"
        if not model.trust:
            what = "TorchScript, which" if form == "torchscript" else "a torch.export archive, which"
            raise Problem("input", f"{path.name} is {what} {_PROGRAM}", _TRUST)
        module_or_none = torchscript.open_trusted(path) if form == "torchscript" else None
        return replace(opened, form=form, source=replace(opened.source, kind="onnx"), module=module_or_none)
    return _of_pickle(opened, path, found, model, maker)


def _of_pickle(opened: Opened, path: Path, found: sniff.Sniffed, model: ModelSource, maker: str | None) -> Opened:
    source, readable, form = opened.source, opened.readable, opened.form
    plain = pickled.is_plain(found) and found.kind != "pickle"
    if maker is not None and found.kind != "pickle":
        form, source, readable = "state_dict", replace(source, kind="state_dict", factory=maker), _folders(maker)
        if found.kind == "safetensors":
            source = replace(source, file="model.safetensors")
    elif found.kind == "safetensors" or (
        found.scan and found.scan.top == "dict" and plain and not _holds_module(found)
    ):
        raise Problem(
            "input", f"{path.name} holds weights only, not the architecture",
            "add --model file.py:function, naming the function or class that makes the module",
        )  # fmt: skip
    elif not plain:
        if not model.trust:
            raise Problem(
                "input", refusal(path.name, found.scan) if found.scan else f"{path.name} is a pickle", pickled.SAFE_WAY
            )
        folder = str(path.parent)
        source, readable = replace(source, kind="pickle", folders=(folder,)), (folder,)
    module, notes = make(source, path, found)
    return replace(opened, form=form, source=source, module=module, readable=readable, notes=notes)


def _holds_module(found: sniff.Sniffed) -> bool:
    """Whether a checkpoint dict also pickles layers, so that it may hold a whole module."""
    return found.scan is not None and any(name.startswith("torch.nn.modules.") for name in found.scan.globals)


def _made(maker: str | None) -> Opened:
    """A model that a function alone gives, trained already."""
    if maker is None:
        raise Problem(
            "input",
            "no model was given",
            "name a model file, or a function that makes one: --model file.py:function, or `model` in a workload.py",
        )
    module, notes = floats(factory.make_module(maker))
    file, function = factory.split(maker)
    digest = digest_file(file) if file else _module_digest(maker)
    source = Source(kind="factory", file="weights.pt", name=maker, factory=maker)
    name = file.stem if file else function or maker.rpartition(":")[2]
    return Opened("module", name, digest, None, source, module, _folders(maker), notes)


def _module_digest(maker: str) -> str:
    import sys

    file = getattr(sys.modules.get(maker.rpartition(":")[0]), "__file__", None)
    return digest_file(Path(file)) if file else ""


def _folders(maker: str) -> tuple[str, ...]:
    file, _ = factory.split(maker)
    return (str(file.parent if file else Path.cwd()),)
