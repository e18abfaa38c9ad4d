"""What tests of graph techniques share: a case's exported graph, and whether another one follows the module."""

from pathlib import Path

from petra_deploy.worker.model import parity
from petra_deploy.worker.model.export import export
from tests.models import Case


def exported(case: Case, folder: Path) -> Path:
    path = folder / f"{case.name}.float.onnx"
    export(case.adapter(), case.signature(), case.tensors(2), path)
    return path


def follows(case: Case, path: Path) -> None:
    """Raises Problem where the file's answers are not close to the module's."""
    batches = parity.probes(case.samples(8), case.signature())
    expected = parity.run_module(case.adapter(), case.signature(), batches)
    parity.compare(expected, parity.run_file(path, batches), case.signature(), parity.CLOSE)


def inside(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name
