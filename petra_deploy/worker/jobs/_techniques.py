"""The registered techniques, and what those that make groups smaller offer beside their Protocol."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from petra_deploy.core import registry
from petra_deploy.core.plan import Group
from petra_deploy.worker.model.layout import Finder
from petra_deploy.worker.model.trial import Tensors


def loaded(missing: dict[str, str] | None = None) -> dict[str, ModuleType]:
    """Name -> module of each that can be imported; why another cannot goes into `missing`."""
    found = {}
    for name in registry.names("technique"):
        try:
            found[name] = registry.find("technique", name)
        except ImportError as error:  # an extra is missing
            if missing is not None:
                missing[name] = f"its package is not installed: {error}"
    return found


def finders() -> dict[str, Finder]:
    """Kind of group -> what finds the groups of that kind in a module."""
    return {technique.KIND: technique.groups for technique in loaded().values() if hasattr(technique, "groups")}


class Shrinkers:
    """Makes copies of `model` in which one group is smaller, by the technique whose kind of group it is."""

    def __init__(self, model: nn.Module, example: Tensors) -> None:
        self._model, self._example = model, example
        self._techniques = {t.KIND: t for t in loaded().values() if hasattr(t, "shrinker")}
        self._made: dict[str, Callable[[Group], nn.Module]] = {}

    def shrinks(self, group: Group) -> bool:
        """Whether a technique makes groups of this kind smaller; others are there to be found, not probed."""
        return group.kind in self._techniques

    def without(self, group: Group) -> nn.Module:
        """A copy with half of the group's channels or units, or without the block.

        Raises LookupError for a kind of group that no technique shrinks.
        """
        if group.kind not in self._made:
            technique: Any = self._techniques.get(group.kind)
            if technique is None:
                raise LookupError(f"no technique makes groups of kind {group.kind} smaller for a probe")
            self._made[group.kind] = technique.shrinker(self._model, self._example)
        return self._made[group.kind](group)
