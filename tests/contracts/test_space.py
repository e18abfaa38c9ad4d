"""Any point of the space that a search moves in ends in an engine, or in a failure that says why.

Points are drawn at random, with every technique on offer, those that are off by default too. A couple in each family
here; two hundred with `pytest -m slow tests/contracts/test_space.py`.
"""

import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import machine
from petra_deploy.core.job import Build, Inspect, Transform
from petra_deploy.core.outcome import Failed
from petra_deploy.core.plan import Plan
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Fidelity
from petra_deploy.driver.search.cost_model import CostModel
from petra_deploy.driver.search.encoding import Encoding
from petra_deploy.testing.families import FAMILIES
from petra_deploy.testing.inline import Inline

FEW, MANY = 2, 50  # points of each family
EXPECTED = {"unsupported", "mismatch", "diverged"}  # what may come of a point; anything else is a fault of ours


@pytest.mark.parametrize("family", FAMILIES)
def test_random_points_end_in_an_engine_or_in_a_reason(family: str, tmp_path: Path) -> None:
    sample(family, tmp_path, FEW, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_random_points_end_in_an_engine_or_in_a_reason(family: str, tmp_path: Path) -> None:
    sample(family, tmp_path, MANY, seed=1)


def sample(family: str, folder: Path, points: int, seed: int) -> None:
    """Fails with every point that raised anything but a Problem, or where more than a quarter gave no engine."""
    run, target = Inline(Store(folder)), machine.resolve("cpu")
    workload = FAMILIES[family]().workload(run.store)
    seen = run.must(Inspect(workload=workload, target=target))
    generator = np.random.default_rng(seed)
    layout = seen.layout.with_sensitivities(
        {f"{g.kind}/{g.name}": float(generator.random()) for g in seen.layout.groups}
    )
    plan = Plan(layout=layout, offers=seen.offers, runtime=seen.runtime, unavailable={}, train_rows=32,
                train_seconds_per_row=1e-4, forward_seconds_per_row=1e-5)  # fmt: skip
    encoding = Encoding(plan, CostModel(plan, fixed=1.0), seed)
    failed: list[str] = []
    faults: list[str] = []
    for number in range(points):
        genome = {name: float(generator.random()) for name in encoding.space.names}
        strategy = encoding.decode(genome, allowance=1.0, epochs=1.0)
        job = Transform(workload=workload, strategy=replace(strategy, runtime={}), fidelity=Fidelity(epochs=0.5))
        try:
            done = run(job)
            if not isinstance(done, Failed):
                done = run(Build(graph=done.value, target=target, settings=strategy.runtime))
        except Exception:
            faults.append(f"point {number}, {strategy}:\n{traceback.format_exc()}")
            continue
        if isinstance(done, Failed):
            failed.append(f"point {number}, {done.kind}, {done.reason}: {strategy}")
            if done.kind not in EXPECTED or not done.reason:
                faults.append(failed[-1])
    assert not faults, "\n\n".join(faults)
    assert len(failed) <= max(points // 4, 1), "\n\n".join(failed)
