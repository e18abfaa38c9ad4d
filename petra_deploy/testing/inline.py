"""Run jobs in this process, for tests: the same job code, no child, no limits, no cache.

run = Inline(Store(tmp_path))
graph = run.must(Transform(workload=workload, strategy=Strategy()))
"""

import importlib
import time
from typing import TypeVar

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Job
from petra_deploy.core.outcome import Done, Failed
from petra_deploy.core.store import Store

A = TypeVar("A")


class Inline:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.lines: list[str] = []

    def __call__(self, job: Job[A]) -> Done[A] | Failed:
        from petra_deploy.worker.context import Context

        module = importlib.import_module(f"petra_deploy.worker.jobs.{job.kind}")
        start = time.monotonic()
        try:
            value: A = module.run(job, Context(self.store, self.lines.append))
        except Problem as problem:
            return Failed(job=job.kind, kind=problem.kind, reason=problem.reason, hint=problem.hint)
        return Done(value=value, seconds=time.monotonic() - start)

    def must(self, job: Job[A]) -> A:
        """The answer; an AssertionError with the reason where the job failed."""
        done = self(job)
        if isinstance(done, Failed):
            raise AssertionError(f"{done} (hint: {done.hint})")
        return done.value
