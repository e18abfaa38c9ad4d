"""What tests of graphs share: a case's exported graph, and whether another one follows the module."""

from pathlib import Path

import torch

from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from tests.models import Case

_EXPORTED: list[tuple[Case, bytes]] = []


def exported(case: Case, folder: Path) -> Path:
    """A file of the test's own; models with the same weights are exported once a process."""
    path = folder / f"{case.name}.float.onnx"
    for known, data in _EXPORTED:
        if _same(known, case):
            path.write_bytes(data)
            return path
    export(case.adapter(), case.signature(), case.tensors(2), path)
    _EXPORTED.append((case, path.read_bytes()))
    return path


def _same(one: Case, other: Case) -> bool:
    if (one.name, one.shapes) != (other.name, other.shapes):
        return False
    held, given = one.module.state_dict(), other.module.state_dict()
    return held.keys() == given.keys() and all(torch.equal(held[name], given[name]) for name in held)


def follows(case: Case, path: Path) -> None:
    """Raises Problem where the file's answers are not close to the module's."""
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(case.adapter(), case.signature(), batches)
    parity.compare(expected, parity.run_file(path, batches), case.signature(), parity.CLOSE)


def inside(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name
