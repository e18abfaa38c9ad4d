"""Every registered backend keeps the contract."""

from petra_deploy.core import registry
from petra_deploy.testing.contracts import BackendContract


class TestBackend(BackendContract):
    names = registry.names("backend")
