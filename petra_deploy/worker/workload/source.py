"""What a store entry of a model says about itself: `source.json` beside the copied file.

Later jobs, in other processes, make the same module from it (`opened.py`). Digests of the user's
own code are in it, so that a change of code makes another entry, and another cache key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from petra_deploy.core.data import Data
from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import factory, pickled, state_dict
from petra_deploy.worker.workload.sniff import Sniffed, sniff
from petra_deploy.worker.workload.words import one_line

Kind = Literal["plain", "pickle", "cloudpickle", "state_dict", "factory", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Source(Data):
    kind: Kind
    file: str  # in the entry
    name: str = ""  # the file's own name, for messages
    factory: str | None = None  # "/whole/path/file.py:function"
    folders: tuple[str, ...] = ()  # where the user's trusted code is imported from
    names: tuple[str, ...] = ()
    call: Literal["args", "kwargs", "dict"] = "args"
    code: dict[str, str] = field(default_factory=dict)  # file -> sha256


def make(source: Source, path: Path, sniffed: Sniffed | None = None) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The module in eval mode, on the CPU, with float32 weights; and notes on what was done to it."""
    notes: tuple[str, ...] = ()
    if source.kind == "cloudpickle":
        module = pickled.open_cloudpickled(path)
    else:
        sniffed = sniffed or sniff(path)
        if source.kind == "plain":
            module = pickled.open_plain(path, sniffed)
        elif source.kind == "pickle":
            module = pickled.open_trusted(path, sniffed, Path(source.folders[0]))
        elif source.kind in ("state_dict", "factory") and source.factory is not None:
            module = factory.make_module(source.factory)
            weights, notes = state_dict.read_weights(path, sniffed, pickled.SAFE_WAY)
            notes += state_dict.fit(module, weights, source.name)
        else:
            raise Problem("input", f"{source.name} is not made of layers")
    return floats(module, notes)


def floats(module: torch.nn.Module, notes: tuple[str, ...] = ()) -> tuple[torch.nn.Module, tuple[str, ...]]:
    module = _unwrapped(module)
    kinds = {str(t.dtype).removeprefix("torch.") for t in module.state_dict().values() if torch.is_floating_point(t)}
    if odd := kinds - {"float32"}:
        notes += (f"weights of type {', '.join(sorted(odd))} were taken as float32",)
    try:
        return module.cpu().float().eval(), notes
    except (NotImplementedError, RuntimeError) as error:
        raise Problem("input", f"the model cannot be moved to the CPU as float32: {one_line(error)}") from error


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside DataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, torch.nn.Module):
            return module
        module = inner
