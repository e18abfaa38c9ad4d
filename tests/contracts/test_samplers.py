"""Every registered sampler keeps the contract; those that search any space keep Optuna's own tests too."""

import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase

from petra_deploy.core import registry
from petra_deploy.core.extension import Space
from petra_deploy.testing.contracts import SamplerContract


class TestSampler(SamplerContract):
    names = registry.names("sampler")
    yardsticks = ("random",)


class TestOptunasOwn(BasicSamplerTestCase):
    """Not `cma`: it refuses parameters that are no coefficient of the space it was created for, and these
    tests make up others as they go (whole numbers, choices, other ranges)."""

    @pytest.fixture(params=[name for name in registry.names("sampler") if name != "cma"])
    def sampler(self, request):
        return lambda: registry.find("sampler", request.param).create(Space(names=()), [], 0)


def test_cma_refuses_what_is_no_coefficient_of_its_space():
    sampler = registry.find("sampler", "cma").create(Space(names=("width",)), [], 0)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(RuntimeError, match="depth is not a coefficient"):
        study.ask().suggest_float("depth", 0.0, 1.0)
