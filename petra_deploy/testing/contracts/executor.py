"""The contract of an executor, the light part: it opens, answers, and closes more than once.

That limits kill, that children die with their driver and that a crash is an answer needs faults made
for it: `tests/unit/driver/executors/test_local.py` does that for ours.
"""

from pathlib import Path
from typing import Any

from petra_deploy.core.job import Build
from petra_deploy.core.outcome import Failed, Graph
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature
from petra_deploy.testing.contracts._contract import Contract, found


class ExecutorContract(Contract):
    """`Options(store=, logs=)` must be enough to open it."""

    kind = "executor"

    def test_a_job_that_cannot_be_done_is_an_answer_and_closing_twice_is_harmless(
        self, executor: str, tmp_path: Path
    ) -> None:
        opened = open_on(executor, tmp_path)
        try:
            answer = opened.run(_impossible())
        finally:
            opened.close()
        opened.close()
        assert isinstance(answer, Failed)
        assert answer.job == "build"
        assert answer.reason

    def test_it_can_be_closed_before_any_job(self, executor: str, tmp_path: Path) -> None:
        open_on(executor, tmp_path).close()


def open_on(name: str, folder: Path) -> Any:
    module = found("executor", name)
    return module.open(module.Options(store=Store(folder / "store").root, logs=folder / "logs"))


def _impossible() -> Build:
    """A build, which needs no torch, of a graph that is nowhere."""
    graph = Graph(key="0" * 64, signature=Signature(inputs=(), outputs=()), bytes=1)
    return Build(graph=graph, target=Target(name="here", runtime="onnxruntime", device="cpu"))
