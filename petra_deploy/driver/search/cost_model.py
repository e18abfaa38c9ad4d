"""What a trial will cost in time, so that what cannot fit is not asked.

Training time is rows x epochs x the measured time a row of the original takes x the share of the
original's multiply-accumulates that the strategy leaves, corrected by what earlier trials took. On an
accelerator it is no less than the starts of the kernels take, which fewer layers save and narrower ones do not.
Everything here is predicted and only steers the search; no figure of it is ever shown as measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from petra_deploy.core.outcome import Outcome
from petra_deploy.core.plan import Group, Plan
from petra_deploy.core.strategy import Strategy

_FLOOR = 0.04  # a small network still pays for Python and memory
_TOO_SLOW = 1.5  # times what was expected, at least, where a training met its limit
_WHOLE = ("block", "stage")  # kinds of groups that go as a whole
_PARTS = ("channels", "heads", "units")  # kinds that share the work out; groups of all others lie across these


def remaining_share(strategy: Strategy, plan: Plan) -> float:
    """The share of the original's multiply-accumulates left by a strategy's steps, 0 to 1.

    A group at keep k costs about k squared: its inputs shrink with its outputs.
    """
    keep = _kept(strategy, plan)

    def shallow(group: Group) -> float:
        """The share of a recurrent module's layers that is left."""
        gone = [
            g
            for g in plan.layout.of_kind("layer")
            if g.name.startswith(f"{group.name}:") and keep.get((g.kind, g.name)) == 0.0
        ]
        return max(1.0 - sum(g.parameters for g in gone) / max(group.parameters, 1), 0.0)

    dropped = _dropped(keep)
    total = left = counted = 0.0
    for group in plan.layout.groups:
        if group.kind not in _PARTS:
            continue
        work = float(group.macs or group.parameters)
        total += work
        counted += group.parameters
        if not _inside(group.name, dropped):
            left += work * shallow(group) * keep.get((group.kind, group.name), 1.0) ** 2
    if not total:
        total = left = float(plan.layout.parameters)
    elif counted:  # what no technique can shrink (attention, embeddings) stays, unless its block goes
        rest = max(plan.layout.parameters - counted, 0.0) * total / counted
        gone = sum(g.parameters for g in plan.layout.groups if g.kind in _WHOLE and g.name in dropped)
        total += rest
        left += rest * max(1.0 - gone / max(plan.layout.parameters, 1), 0.0)
    left *= min((share for (kind, _), share in keep.items() if kind == "resolution"), default=1.0)
    return max(left / total, _FLOOR) if total else 1.0


def remaining_depth(strategy: Strategy, plan: Plan) -> float:
    """The share of the layers that dropped blocks and stages leave, 0 to 1."""
    gone = _dropped(_kept(strategy, plan))
    parts = [group.name for group in plan.layout.groups if group.kind in _PARTS]
    return sum(not _inside(name, gone) for name in parts) / len(parts) if parts else 1.0


@dataclass
class CostModel:
    """Seconds of a trial: training from the probe, the rest from the trials so far."""

    plan: Plan
    fixed: float  # of a trial beside its training: export, quantize, build, measure, score
    _ratios: list[float] = field(default_factory=list)
    _fixed: list[float] = field(default_factory=list)

    def epoch_seconds(self, strategy: Strategy) -> float:
        if self.plan.train_seconds_per_row is None:
            return 0.0
        shrunk = self.plan.train_seconds_per_row * remaining_share(strategy, self.plan)
        least = self.plan.train_starts_per_row * remaining_depth(strategy, self.plan)
        return self.plan.train_rows * max(shrunk, least) * self._correction()

    def seconds(self, strategy: Strategy) -> float:
        """Of what was trained on the last training counts: the module after those before it is in the store."""
        ahead = epochs_of(strategy) - sum(trainings(strategy)[:-1])
        return self.fixed_seconds() + ahead * self.epoch_seconds(strategy)

    def fixed_seconds(self) -> float:
        recent = sorted(self._fixed[-7:])
        return recent[len(recent) // 2] if recent else self.fixed

    def learn(self, outcome: Outcome) -> None:
        """Take in what a finished trial took, and what was not enough for one whose training met its limit."""
        if outcome.failed is not None and (outcome.failed.job, outcome.failed.kind) == ("transform", "timeout"):
            expected = self._expected(outcome.strategy)
            self._ratios += [max(outcome.failed.seconds / expected, _TOO_SLOW * self._correction())] if expected else []
        if not outcome.ok:
            return
        trained = _trained_seconds(outcome)
        self._fixed.append(outcome.seconds - trained)
        expected = self._expected(outcome.strategy)
        alone = sum("epochs" in step.options for step in outcome.strategy.steps) == 1  # of several some may be stored
        if alone and expected > 0 and trained > 0.5:
            self._ratios.append(trained / expected)

    def _expected(self, strategy: Strategy) -> float:
        """Seconds of its training, had no trial been seen."""
        return epochs_of(strategy) * self.epoch_seconds(strategy) / self._correction()

    def _correction(self) -> float:
        recent = sorted(self._ratios[-5:])
        return recent[len(recent) // 2] if recent else 1.0


def epochs_of(strategy: Strategy) -> float:
    return sum(float(str(step.options.get("epochs", 0))) for step in strategy.steps)


def trainings(strategy: Strategy) -> list[float]:
    """The epochs of the first technique that trains: several where it was trained on."""
    return [float(str(strategy.steps[index].options["epochs"])) for index in _trained_at(strategy)]


def before_last(strategy: Strategy) -> Strategy:
    """The strategy without its last training."""
    *_, last = _trained_at(strategy)
    return replace(strategy, steps=(*strategy.steps[:last], *strategy.steps[last + 1 :]))


def _kept(strategy: Strategy, plan: Plan) -> dict[tuple[str, str], float]:
    """(kind, group) -> the share of it that the steps leave."""
    keep: dict[tuple[str, str], float] = {}
    for step in strategy.steps:
        offer = plan.offer(step.technique)
        for option, knob in (offer.knobs if offer else {}).items():  # other options may be by layer, too
            value = step.options.get(option)
            if knob.per and isinstance(value, dict):
                keep |= {(knob.per, name): 1.0 - float(share) for name, share in value.items()}
            elif knob.per and isinstance(value, list | tuple):
                keep |= {(knob.per, name): 0.0 for name in value}
    return keep


def _dropped(keep: dict[tuple[str, str], float]) -> list[str]:
    return [name for (kind, name), share in keep.items() if kind in _WHOLE and share == 0.0]


def _inside(name: str, blocks: Sequence[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _trained_at(strategy: Strategy) -> list[int]:
    first = next((step.technique for step in strategy.steps if "epochs" in step.options), None)
    return [index for index, step in enumerate(strategy.steps) if step.technique == first]


def _trained_seconds(outcome: Outcome) -> float:
    """What training took within an outcome, from the transform's own facts; 0 where it was cached."""
    facts = outcome.graph.facts if outcome.graph else {}
    seconds = facts.get("seconds")
    if not isinstance(seconds, dict):
        return 0.0
    trains = {step.technique for step in outcome.strategy.steps if "epochs" in step.options}
    trained = sum(float(taken) for name, taken in seconds.items() if name.split()[0] in trains)
    return trained if trained <= outcome.seconds else 0.0
