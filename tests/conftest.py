"""Shared by all tests. Its presence puts the repository's root on the path, so that `tests.models` imports.

One thread a process: the models are tiny, and threads that wait for each other on a busy machine cost
more than they give.
"""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.far_machine import FarMachine, far_machine

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarMachine]:
    """A second machine, behind an SSH server on this one."""
    pytest.importorskip("asyncssh", reason="the SSH server of these tests is asyncssh, which is not installed")
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with far_machine(tmp_path_factory.mktemp("far")) as machine:
        yield machine
