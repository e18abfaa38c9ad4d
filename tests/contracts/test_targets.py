"""Every shipped target keeps the contract."""

from petra_deploy.core import machine
from petra_deploy.testing.contracts import TargetContract


class TestTarget(TargetContract):
    names = tuple(machine.targets())
