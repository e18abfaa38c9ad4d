"""What can be known of a model and done to it, as plain data: no torch needed to read it."""

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal

from petra_deploy.core.data import Data
from petra_deploy.core.workload import Form, Signature


class Phase(IntEnum):
    """When a step runs. Steps run module first, then graph; inside each by phase."""

    SHRINK = 1
    RECOVER = 2
    REWRITE = 3  # the same function in another form: what it answers is held to be the same
    QUANTIZE = 4
    FINISH = 5


ActsOn = Literal["module", "graph"]


@dataclass(frozen=True, kw_only=True)
class Group(Data):
    """Something of the model that can be made smaller as one unit.

    `kind` says by which sort of technique: "channels" (coupled channels of conv and linear
    layers), "heads" (of an attention module), "units" (hidden units of a recurrent layer), "block" (a removable block),
    "precision" (a part that can be int8 or float; such groups may overlap those of the other kinds), and others.
    """

    name: str  # the module's name in the user's model, as named_modules() gives it
    kind: str
    width: int  # channels or units; 1 for a block
    parameters: int
    macs: int  # multiply-accumulates a sample; 0 where unknown
    sensitivity: float | None = None  # damage when shrunk alone; None: not probed


@dataclass(frozen=True, kw_only=True)
class Layout(Data):
    form: Form
    signature: Signature
    parameters: int
    bytes: int
    operators: dict[str, int]  # module class or ONNX operator -> count
    groups: tuple[Group, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)  # "kind/name" -> why this part must stay as it is
    largest: dict[str, int] = field(default_factory=dict)  # module class -> weights of its largest parameter

    def of_kind(self, kind: str) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.kind == kind)

    def refusals(self, kind: str) -> list[str]:
        """Why parts that could have been groups of this kind are none: "name: why" each."""
        return [f"{key.partition('/')[2]}: {why}" for key, why in self.refused.items() if key.startswith(f"{kind}/")]

    def with_sensitivities(self, sensitivity: dict[str, float]) -> "Layout":
        """The same layout with probed damages, keyed by "kind/name"."""
        groups = tuple(
            replace(g, sensitivity=sensitivity.get(f"{g.kind}/{g.name}", g.sensitivity)) for g in self.groups
        )
        return replace(self, groups=groups)


@dataclass(frozen=True, kw_only=True)
class Knob(Data):
    """One option that the search may turn, and how.

    `per` names a kind of group: the option then is {group name: value}, spread over the groups
    by their sensitivity; for a "subset" knob it is the list of group names taken, least sensitive
    first (or, with `most_sensitive`, the other way round), and the searched value is the share of
    groups. `ladder` holds known-good values from mild to strong, from which the presets are made.
    A step whose `strength` knob is at `low` does nothing and is left out; without a `ladder`
    presets leave it out, and most candidates do.
    """

    kind: Literal["real", "integer", "choice", "subset"]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()
    per: str | None = None
    ladder: tuple[float, ...] = ()
    strength: bool = False
    most_sensitive: bool = False

    def at(self, height: float) -> float | int | str:
        """The value at a height of 0 to 1 of its range; a share of the groups for a subset."""
        height = min(max(height, 0.0), 1.0)
        if self.kind == "choice":
            return self.choices[min(int(height * len(self.choices)), len(self.choices) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + height * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + height * (self.high - self.low)
        return round(value) if self.kind == "integer" else float(f"{value:.4g}")

    @classmethod
    def real(
        cls,
        low: float,
        high: float,
        *,
        log: bool = False,
        per: str | None = None,
        ladder: tuple[float, ...] = (),
        strength: bool = False,
    ) -> "Knob":
        return cls(kind="real", low=low, high=high, log=log, per=per, ladder=ladder, strength=strength)

    @classmethod
    def integer(
        cls, low: int, high: int, *, log: bool = False, ladder: tuple[float, ...] = (), strength: bool = False
    ) -> "Knob":
        return cls(kind="integer", low=low, high=high, log=log, ladder=ladder, strength=strength)

    @classmethod
    def choice(cls, *choices: str) -> "Knob":
        return cls(kind="choice", choices=choices, high=float(len(choices)))

    @classmethod
    def subset(
        cls, per: str, *, high: float = 1.0, ladder: tuple[float, ...] = (), strength: bool = True,
        most_sensitive: bool = False,
    ) -> "Knob":  # fmt: skip
        return cls(kind="subset", per=per, high=high, ladder=ladder, strength=strength, most_sensitive=most_sensitive)


@dataclass(frozen=True, kw_only=True)
class Offer(Data):
    """A technique (or, for runtime settings, the backend) that applies to this model."""

    technique: str
    phase: Phase
    acts_on: ActsOn
    knobs: dict[str, Knob] = field(default_factory=dict)
    fixed: dict[str, object] = field(default_factory=dict)  # options the target settles, like round_to
    order: int = 0  # among quantizers: lower is tried first
    settled: bool = False  # taken in every candidate, not searched
    off: str = ""  # why it is searched only where the user asks for it by name


@dataclass(frozen=True, kw_only=True)
class Inspected(Data):
    """What Inspect answers: the facts, and what each technique says to them."""

    layout: Layout
    offers: tuple[Offer, ...]
    runtime: dict[str, Knob] = field(default_factory=dict)  # the backend's own knobs
    unavailable: dict[str, str] = field(default_factory=dict)  # technique -> why not


@dataclass(frozen=True, kw_only=True)
class Probed(Data):
    """What Probe answers: damages, and what work costs on this machine."""

    sensitivity: dict[str, float]  # "kind/name" -> divergence of the outputs when shrunk alone
    train_seconds_per_row: float | None  # forward and backward of the original; None: no training
    forward_seconds_per_row: float
    train_starts_per_row: float = 0.0  # of that, what no width saves: on an accelerator the starts of its kernels


@dataclass(frozen=True, kw_only=True)
class Plan(Data):
    layout: Layout
    offers: tuple[Offer, ...]
    runtime: dict[str, Knob]
    unavailable: dict[str, str]
    train_rows: int
    train_seconds_per_row: float | None
    forward_seconds_per_row: float
    train_starts_per_row: float = 0.0  # as in Probed
    unshrunk: str = ""  # why all that shrinks was left out of the plan, where it was

    def offer(self, technique: str) -> Offer | None:
        return next((offer for offer in self.offers if offer.technique == technique), None)
