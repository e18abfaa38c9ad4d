"""The base of all contracts: tests run once for each of `names`, and for each family of models asked for."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, NoReturn

from petra_deploy.core import registry
from petra_deploy.core.errors import PetraError, Problem
from petra_deploy.testing.families import FAMILIES


class Contract:
    """Subclass one of the contracts and set `names`; pytest does the rest.

    A test that takes an argument called as the `kind` gets each name; one that takes `family`, each
    family of models too.
    """

    kind: ClassVar[str]
    names: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if self.kind in metafunc.fixturenames:
            metafunc.parametrize(self.kind, tuple(self.names))
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", tuple(FAMILIES))


def found(kind: str, name: str) -> ModuleType:
    """The extension module; the test is skipped where a package that it needs is not installed."""
    try:
        module: ModuleType = registry.find(kind, name)
    except ImportError as error:
        skip(f"{name} needs a package that is not here: {error}")
    return module


def skip(reason: str) -> NoReturn:
    import pytest  # of the extra `test`

    pytest.skip(reason)


def sentences(reasons: Any) -> tuple[str, ...]:
    """`reasons` as a tuple, if they are what obstacles must be: strings that say something."""
    assert not isinstance(reasons, str), "obstacles gives a string; it must give a sequence of them"
    assert all(isinstance(reason, str) and reason.strip() for reason in reasons), reasons
    return tuple(reasons)


def refusal(do: Callable[[], object]) -> str:
    """What `do` is refused with: a Problem or an error of ours."""
    try:
        do()
    except (PetraError, Problem) as error:
        return str(error)
    raise AssertionError("it was not refused")
