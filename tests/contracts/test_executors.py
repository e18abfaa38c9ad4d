"""Every registered executor keeps the contract."""

from petra_deploy.core import registry
from petra_deploy.testing.contracts import ExecutorContract


class TestExecutor(ExecutorContract):
    names = registry.names("executor")
