"""What every extension of a kind promises, as tests that anyone can run on their own.

    # test_mine.py, in a package that registers `mine` under the entry point group petra_deploy.technique
    from petra_deploy.testing.contracts import TechniqueContract

    class TestMine(TechniqueContract):
        names = ("mine",)

Each contract is a class of pytest tests; `names` are what it runs on. `tests/contracts` sets them to
all that are registered, so a new file is tested the moment it exists.
"""

from petra_deploy.testing.contracts.backend import BackendContract
from petra_deploy.testing.contracts.executor import ExecutorContract
from petra_deploy.testing.contracts.metric import MetricContract
from petra_deploy.testing.contracts.sampler import SamplerContract
from petra_deploy.testing.contracts.target import TargetContract
from petra_deploy.testing.contracts.technique import TechniqueContract

__all__ = [
    "BackendContract", "ExecutorContract", "MetricContract", "SamplerContract", "TargetContract",
    "TechniqueContract",
]  # fmt: skip
