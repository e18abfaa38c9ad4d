"""Every registered technique keeps the contract."""

from petra_deploy.core import registry
from petra_deploy.testing.contracts import TechniqueContract


class TestTechnique(TechniqueContract):
    names = registry.names("technique")
