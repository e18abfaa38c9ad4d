"""Contracts are modules of the package: pytest is told to explain their assertions too."""

import pytest

pytest.register_assert_rewrite("petra_deploy.testing.contracts")
