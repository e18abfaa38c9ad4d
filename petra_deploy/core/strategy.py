"""A compression strategy: everything needed to rebuild one candidate, as plain data.

    Strategy(steps=(Step(technique="prune", options={"ratios": {"conv1": 0.5}}),
                    Step(technique="recover", options={"epochs": 20}),
                    Step(technique="quantize_inc")),
             runtime={"threads": 1}, seed=7)

The empty strategy `Strategy()` is the baseline: the model as it came, exported and built.
"""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from petra_deploy.core.data import Data


@dataclass(frozen=True, kw_only=True)
class Step(Data):
    technique: str  # a registered technique's name, which is its file's name
    options: dict[str, object] = field(default_factory=dict)  # read by the technique's Options


@dataclass(frozen=True, kw_only=True)
class Strategy(Data):
    steps: tuple[Step, ...] = ()
    runtime: dict[str, object] = field(default_factory=dict)  # settings of the backend
    backend: str = ""  # the runtime, one of the target's others; empty: the run's own
    seed: int = 0

    def describe(self) -> str:
        """One short line for tables: the techniques in their order."""
        named = " + ".join(step.technique for step in self.steps)
        named = named or ("runtime settings" if self.runtime else "as it came")
        return f"{named} in {self.backend}" if self.backend else named


@dataclass(frozen=True, kw_only=True)
class Fidelity(Data):
    """How much of the full effort an evaluation spends; less than `FULL` only races."""

    epochs: Annotated[float, Ge(0), Le(1)] = 1.0  # share of the recovery epochs
    rounds: Annotated[int, Ge(1)] = 3  # rounds of measurement


FULL = Fidelity()
