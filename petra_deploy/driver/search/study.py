"""The loop: ask, evaluate, tell, until the trials, the time or the point of going on are used up.

The study (Optuna, SQLite in the run folder) is the truth of a run: each finished trial holds its
strategy and outcome as attributes, so `--resume` reads them back and repeats nothing. This process
is its only writer. A trial found RUNNING at the start was cut off: it is told as failed and asked
once more.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from petra_deploy.core import files, registry
from petra_deploy.core.errors import NotMet, OutOfDisk
from petra_deploy.core.event import Event, OnEvent
from petra_deploy.core.outcome import Goal, Outcome
from petra_deploy.core.strategy import Strategy
from petra_deploy.driver.search import choose, proposals, steps, stopping
from petra_deploy.driver.search.cost_model import epochs_of, trainings
from petra_deploy.driver.search.drops import Drops
from petra_deploy.driver.search.encoding import Encoding, Genome

Evaluate = Callable[[Strategy, float], Outcome]  # (strategy, seconds it may take)
_EPOCHS, _ROWS = 3.0, 6000  # a training should see: its rows so often, or so many
_ASKED = 4.0  # where a number of trials was asked for, each may have this much less training than it would do well with
_WORTH = 1.1  # times faster, below which a step that went on was not worth it
_ON = 0.25  # of the time left, the most for training on what was trained
_ASKED_WITH = ("epochs", "again", "worth", "extra", "rung", "step", "before", "joined")  # of a trial that was enqueued
_DUPLICATES = 25  # asks in a row that decode to known strategies before the space counts as used up


@dataclass
class Search:
    """One study. `run()` returns all outcomes, in the order of their trials."""

    encoding: Encoding
    goal: Goal
    baseline: Outcome
    trials: int | None
    deadline: float  # monotonic seconds by which the last trial must have ended
    evaluate: Evaluate
    storage: str | None  # an Optuna storage URL; None: in memory
    sampler: str
    seed: int
    on_outcome: Callable[[int, Outcome], None]  # trial from 1, outcome: recorded, best bundle kept
    on_event: OnEvent
    outcomes: list[Outcome] = field(default_factory=list)
    _known: dict[bytes, float] = field(default_factory=dict)  # decoded strategy -> value told

    def run(self) -> tuple[Outcome, ...]:
        presets = self.encoding.presets()
        self._known[files.canonical(self.baseline.strategy)] = 0.0  # the baseline is no candidate
        study = self._open(presets)
        duplicates = 0
        while not self._finished() and duplicates < _DUPLICATES:
            self._climb(study)
            trial = study.ask()
            genome = {name: trial.suggest_float(name, 0.0, 1.0) for name in sorted(self.encoding.space.names)}
            strategy = self._decode(genome, trial.user_attrs)
            identity = files.canonical(strategy)
            if identity in self._known:
                duplicates += 1
                trial.set_user_attr("same_as_before", True)
                study.tell(trial, self._known[identity])
                self._try_extras(study)
                continue
            reason = self._pointless(strategy, trial.user_attrs)
            if reason:
                duplicates += 1
                trial.set_user_attr("reason", f"not asked: {reason}")
                study.tell(trial, state=TrialState.FAIL)
                continue
            duplicates = 0
            trial.set_user_attr("strategy", files.plain(strategy))
            self._announce(strategy)
            outcome = self.evaluate(strategy, self._left())
            if outcome.failed and outcome.failed.kind == "disk":
                raise OutOfDisk(outcome.failed.reason, "free some space and run again with --resume")
            self._tell(study, trial, genome, outcome)
        if self.trials is not None and len(self.outcomes) < self.trials and duplicates < _DUPLICATES:
            text = f"the time was used up after {len(self.outcomes)} of {self.trials} trials: give more --time for all"
            self.on_event(Event(kind="note", text=text))
        return tuple(self.outcomes)

    def _open(self, presets: list[dict[str, float]]) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = registry.find("sampler", self.sampler).create(self.encoding.space, presets, self.seed)
        study = optuna.create_study(
            storage=self.storage, study_name="petra", sampler=sampler, load_if_exists=True, direction="minimize"
        )
        earlier = study.get_trials(deepcopy=False)
        for trial in earlier:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    asked = {name: value for name, value in trial.user_attrs.items() if name in _ASKED_WITH}
                    study.enqueue_trial(trial.params, user_attrs=asked)
            elif "outcome" in trial.user_attrs:
                outcome = files.decode(json.loads(trial.user_attrs["outcome"]), Outcome, f"trial {trial.number}")
                self._remember(outcome, trial.value)
        if not earlier:
            plain = [p for p in presets if not self.encoding.shrunk(self.encoding.decode(p, allowance=1.0))]
            for preset in plain:
                study.enqueue_trial(preset)
            for preset in reversed(presets[len(plain) :]):  # the strongest trains in the shortest time
                study.enqueue_trial(preset, user_attrs={"rung": True})
        return study

    def _decode(self, genome: dict[str, float], asked: Mapping[str, Any]) -> Strategy:
        """The strategy, its training as long as this shape wants and the time that is left permits."""
        shape = self.encoding.decode(genome, allowance=1.0)
        return self.encoding.decode(
            genome,
            allowance=self._allowance(shape),
            epochs=asked.get("epochs"),
            again=asked.get("again", ()),
            broken=stopping.broken(self.outcomes, self.encoding.quantizers(), self._gain),
        )

    def _tell(self, study: optuna.Study, trial: optuna.Trial, genome: dict[str, float], outcome: Outcome) -> None:
        """Make the result durable, then learn from it."""
        before, drops = self._best(), Drops([*self.outcomes, outcome])
        trial.set_user_attr("outcome", files.dumps(outcome, indent=None))
        if outcome.ok:
            told = choose.value(outcome, self.goal, self._bytes, drops)
            trial.set_constraint("drop", choose.upper_drop(outcome, choose.MARGINS[0], drops) - self.goal.max_drop)
            study.tell(trial, told)
        else:
            told = None
            study.tell(trial, state=TrialState.FAIL)
        self._remember(outcome, told)
        self.on_outcome(len(self.outcomes), outcome)
        if (reason := stopping.hopeless(self.outcomes)) is not None:
            raise NotMet(f"the search ended early: {reason}", "the logs of the trials are in the run folder")
        self._try_extras(study)
        waiting = sum(t.state == TrialState.WAITING for t in study.get_trials(deepcopy=False))
        for proposal in proposals.after(
            outcome, genome, before, self.goal, self._bytes, self.encoding, drops, self.outcomes
        ):
            if self.trials is None or len(self.outcomes) + waiting < self.trials:
                asked = {"epochs": proposal.epochs, "again": list(proposal.again), "worth": proposal.worth}
                asked |= {"before": trial.user_attrs["before"]} if "before" in trial.user_attrs else {}
                study.enqueue_trial(proposal.genome, user_attrs=asked)
                waiting += 1

    def _try_extras(self, study: optuna.Study) -> None:
        """Once the presets are judged, enqueue the best so far with each technique that they leave out.

        Where few trials were asked for there is no room for that, unless presets leave out all there is: then they are
        all the model as it came.
        """
        trials = study.get_trials(deepcopy=False)
        judged = [t for t in trials if t.value is not None]
        begun = any(t.state == TrialState.WAITING or "extra" in t.user_attrs for t in trials)
        if begun or not judged:
            return
        best = min(judged, key=lambda t: t.value if t.value is not None else math.inf)
        extras = steps.extras(self.encoding, best.params)
        if self.trials is None or not self.outcomes or len(self.outcomes) + 2 * len(extras) <= self.trials:
            for genome in extras:
                study.enqueue_trial(genome, user_attrs={"extra": True})

    def _climb(self, study: optuna.Study) -> None:
        """Enqueue the next step on from the best, where nothing waits: every second trial, and after each that led on.

        The presets end where most models do; one that bears more is followed until it does not.
        """
        trials = study.get_trials(deepcopy=False)
        best = self._best()
        if best is None or any(trial.state == TrialState.WAITING for trial in trials):
            return
        ours = [trial for trial in trials if "outcome" in trial.user_attrs]
        plain = files.plain(best.strategy)
        start = next((trial for trial in ours if trial.user_attrs["strategy"] == plain), None)
        if start is None or ("step" in ours[-1].user_attrs and ours[-1].number != start.number):
            return
        asked: dict[str, Any] = {"step": start.number, "before": start.number}
        genomes = [steps.active(self.encoding, t.params, o) for t, o in zip(ours, self.outcomes, strict=True)]
        genome = genomes[ours.index(start)]
        joined = [trial.user_attrs["joined"] for trial in trials if "joined" in trial.user_attrs]
        for step in self._joins(genome, genomes, self._gains(ours)[start.number]):
            begun = sorted(name for name in step if step[name] != genome[name])
            if begun not in joined:
                study.enqueue_trial(step, user_attrs={**asked, "joined": begun})
                return
        tried = [trial.params for trial in trials]
        further = next((step for step in self._steps(start, genome, ours) if step not in tried), None)
        if further is not None:
            study.enqueue_trial(further, user_attrs=asked)

    def _joins(self, genome: Genome, others: Sequence[Genome], gain: float) -> list[dict[str, float]]:
        """`genome` with the strengths that others did well with and it leaves out, of the fastest first.

        The same strengths are joined but once a run: where they held, later bests have them; where not, nor would they.
        """
        drops = Drops(self.outcomes)
        held = [
            (self._gain(outcome), other)
            for outcome, other in zip(self.outcomes, others, strict=True)
            if choose.feasible(outcome, self.goal, drops) and self._gain(outcome) ** 2 > gain
        ]
        met = [steps.joined(self.encoding, genome, other) for _, other in sorted(held, key=lambda pair: -pair[0])]
        return [step for step in met if step is not None]

    def _steps(self, start: FrozenTrial, genome: Genome, ours: Sequence[FrozenTrial]) -> list[dict[str, float]]:
        """Steps on from `genome`; last what goes on as the step that led there, where that bought little."""
        further, gains = steps.further(self.encoding, genome), self._gains(ours)
        before = next((trial for trial in ours if trial.number == start.user_attrs.get("before")), None)
        if before is None or gains[start.number] > _WORTH * gains[before.number]:
            return further
        spent = {name for name, gene in start.params.items() if gene != before.params[name]}
        return sorted(further, key=lambda step: all(step[name] == genome[name] or name in spent for name in step))

    def _gains(self, ours: Sequence[FrozenTrial]) -> dict[int, float]:
        """Trial number -> gain."""
        return {trial.number: self._gain(outcome) for trial, outcome in zip(ours, self.outcomes, strict=True)}

    def _remember(self, outcome: Outcome, told: float | None) -> None:
        self.outcomes.append(outcome)
        self.encoding.cost.learn(outcome)
        worst = max((v for v in self._known.values()), default=0.0) + 1.0
        self._known[files.canonical(outcome.strategy)] = worst if told is None else told

    @property
    def _bytes(self) -> int:
        return self.baseline.engine.bytes if self.baseline.engine else 1

    def _best(self) -> Outcome | None:
        return choose.best(self.outcomes, self.goal, self._bytes)

    def _gain(self, outcome: Outcome) -> float:
        return choose.gain(outcome, self.goal, self._bytes)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _finished(self) -> bool:
        enough = self.trials is not None and len(self.outcomes) >= self.trials
        return enough or self._left() < 1.1 * self.encoding.cost.fixed_seconds()

    def _allowance(self, strategy: Strategy) -> float:
        """A trial's fair share of the training time that is left, seconds, where all trials were of this shape."""
        fixed, wanted = self.encoding.cost.fixed_seconds(), self.encoding.wanted_seconds(strategy)
        left = max(self._left(), 0.0)
        least = wanted if self.trials is None else wanted / _ASKED  # fewer trials rather than useless ones
        trials = min(max(left / (fixed + least), 1.0), 60.0)
        if self.trials is not None:
            trials = min(trials, max(self.trials - len(self.outcomes), 1))
        return max(min((left - trials * fixed) / trials, 0.7 * (left - fixed), 4 * wanted), 0.0)

    def _pointless(self, strategy: Strategy, asked: Mapping[str, Any]) -> str:
        """Why a trial is not worth asking, or an empty string.

        It must fit into the time left, with enough epochs: a large network that is shrunk a little
        learns slowly, so where stronger presets get three epochs in the same time, those that do
        not are passed over. Neither is a preset asked where a stronger one held, nor a variant of what was beaten.
        """
        share = self.encoding.cost.seconds(strategy) / max(self._left(), 1e-6)
        if share > 1.0:
            return "it would not fit into the time left"
        if len(trainings(strategy)) > 1 and share > _ON:
            return "training on would take too much of the time left"
        best = self._best()
        if "rung" in asked and best is not None and self.encoding.shrunk(best.strategy):
            return "a stronger one is good enough"
        worth = asked.get("worth", 0.0)
        if worth and best is not None and worth < 0.6 * choose.gain(best, self.goal, self._bytes):
            return "what it is a variant of has been beaten"
        epochs, strongest = epochs_of(strategy), epochs_of(self._decode(self.encoding.presets()[-1], {}))
        least = min(max(_ROWS / max(self.encoding.plan.train_rows, 1), 0.5), _EPOCHS, strongest)
        return "too few epochs would fit" if 0 < epochs < least else ""

    def _announce(self, strategy: Strategy) -> None:
        best = self._best()
        number = len(self.outcomes) + 1
        with contextlib.suppress(ValueError):
            speedup = choose.gain(best, self.goal, self._bytes) if best else None
            self.on_event(
                Event(kind="trial", text=strategy.describe(), trial=number, of=self.trials,
                      seconds_left=max(self._left(), 0.0), best_speedup=speedup)
            )  # fmt: skip
