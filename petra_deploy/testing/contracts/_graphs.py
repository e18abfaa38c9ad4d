"""The families of models as ONNX files, each exported once a process: what contracts of graphs start from."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from petra_deploy.core.job import Transform
from petra_deploy.core.plan import Layout
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Strategy
from petra_deploy.core.workload import Signature
from petra_deploy.testing.case import Case
from petra_deploy.testing.families import FAMILIES
from petra_deploy.testing.inline import Inline


@functools.cache
def case_of(family: str) -> Case:
    return FAMILIES[family]()


@functools.cache
def layout_of(family: str) -> Layout:
    return case_of(family).layout()


@functools.cache
def exported(family: str) -> tuple[bytes, Signature]:
    """The baseline's graph, by the job that makes it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        graph = Inline(store).must(Transform(workload=case_of(family).workload(store), strategy=Strategy()))
        return (store.path(graph.key) / "model.onnx").read_bytes(), graph.signature


def feeds(family: str, rows: int) -> dict[str, NDArray[Any]]:
    case = case_of(family)
    return {name: tensor.numpy() for name, tensor in zip(case.shapes, case.tensors(rows, seed=9), strict=True)}
