"""strategy.json: how to make the same engine again, from this model or from its next training.

    recipe = read(Path("bundle/strategy.json"))
    recipe.obstacles(layout)                  # () where the model has the same architecture

A bare strategy, `{"steps": [...]}`, is read too: written by hand it promises nothing, so there is
no architecture and no speedup to hold it to.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from petra_deploy.core import files
from petra_deploy.core.data import Data
from petra_deploy.core.errors import BadInput
from petra_deploy.core.outcome import Figure, Goal
from petra_deploy.core.plan import Layout
from petra_deploy.core.strategy import FULL, Fidelity, Strategy
from petra_deploy.core.workload import TensorSpec

_KINDS = ("channels", "units", "block", "heads", "stage", "layer")
Schema = Literal["petra-deploy/strategy/1"]


@dataclass(frozen=True, kw_only=True)
class Architecture(Data):
    """What must be the same for a strategy to fit: operators, sizes and the groups it names, not the weights.

    Groups that depend on the machine (where factors were faster) or overlap others are left out.
    """

    fingerprint: str  # sha256 over the fields below; for people
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    groups: tuple[tuple[str, str, int], ...]  # name, kind, width
    parameters: int

    @classmethod
    def of(cls, layout: Layout) -> "Architecture":
        facts = {
            "inputs": layout.signature.inputs,
            "outputs": layout.signature.outputs,
            "operators": dict(sorted(layout.operators.items())),
            "groups": tuple((g.name, g.kind, g.width) for g in layout.groups if g.kind in _KINDS),
            "parameters": layout.parameters,
        }
        return cls(fingerprint=hashlib.sha256(files.canonical(facts)).hexdigest(), **facts)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Promise(Data):
    """What the search found; `apply` measures again and says whether it still holds."""

    speedup: Figure
    drop: Figure | None
    size_ratio: float


@dataclass(frozen=True, kw_only=True)
class Recipe(Data):
    schema: Schema = "petra-deploy/strategy/1"
    strategy: Strategy
    fidelity: Fidelity = FULL
    target: str | None = None
    runtime: str = ""  # that the user named for the whole run, the baseline too; empty: the target's own
    goal: Goal | None = None
    metric: str | None = None
    architecture: Architecture | None = None
    promise: Promise | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def obstacles(self, layout: Layout) -> tuple[str, ...]:
        """Why this recipe does not fit a model of `layout`, one phrase each; () where it fits."""
        if self.architecture is None:
            return ()
        now = Architecture.of(layout)
        found = [
            f"its {name} differ"
            for name in ("inputs", "outputs", "operators")
            if getattr(now, name) != getattr(self.architecture, name)
        ]
        named = {name for step in self.strategy.steps for value in step.options.values() for name in _names(value)}
        after = {(name, kind): width for name, kind, width in now.groups}
        for name, kind, width in self.architecture.groups:
            if name in named and after.get((name, kind)) != width:
                found.append(f"{name} has {after.get((name, kind), 'no')} {kind}, not {width}")
        if now.parameters != self.architecture.parameters and not found:
            found.append(f"it has {now.parameters} parameters, not {self.architecture.parameters}")
        return tuple(found)

    def known_metric(self, data: object) -> str | None:
        """The metric to judge by, where none is named; None leaves it to a workload.py.

        Raises BadInput for a user's own, whose code no strategy may start.
        """
        if self.metric is not None and ":" in self.metric:
            if str(data).endswith(".py"):
                return None
            raise BadInput(
                f"the strategy was judged by {self.metric}, which is code", "name the function again with --metric"
            )
        return self.metric


def _names(option: object) -> tuple[str, ...]:
    """The groups that an option of a step may name."""
    return tuple(name for name in option if isinstance(name, str)) if isinstance(option, dict | list | tuple) else ()


def read(path: Path) -> Recipe:
    """A recipe, or a bare strategy. Raises BadInput with the file, the place and the cause."""
    data = files.parse_json(path)
    if isinstance(data, dict) and "strategy" not in data and "steps" in data:
        return Recipe(strategy=files.decode(data, Strategy, str(path)))
    if isinstance(data, dict) and data.get("schema", Recipe.schema) != Recipe.schema:
        raise BadInput(
            f"{path} says it is {data['schema']!r}; this version reads {Recipe.schema!r}",
            "give the strategy.json of a bundle, or install the version that wrote it",
        )
    return files.decode(data, Recipe, str(path))
