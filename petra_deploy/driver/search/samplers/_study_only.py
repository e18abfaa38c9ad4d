"""Optuna's samplers without what they keep to themselves, and with the failures that they skip.

    StudyOnly(lambda seed: optuna.samplers.TPESampler(seed=seed), seed=0)

They hold a random state, so a resumed run would throw the same dice again; and they skip failed
trials, so a dead region would be asked for ever. Here the sampler is made anew for every trial,
seeded by the trial's number, and sees a copy of the study in which a failed trial is a finished one
that violates a constraint by more than any other.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

_FAILED = {"failed": 1e9}


class StudyOnly(optuna.samplers.BaseSampler):
    """`make` gives the sampler for a seed; one that does not learn needs no `history`."""

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int, *, history: bool = True) -> None:
        self._make = make
        self._seed = seed
        self._history = history

    def infer_relative_search_space(self, study: "optuna.Study", trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial).infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: "optuna.Study", trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial).sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: "optuna.Study", trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._sampler(trial, param_name)
        return sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def _sampler(self, trial: FrozenTrial, name: str = "") -> optuna.samplers.BaseSampler:
        return self._make(int(np.random.SeedSequence([self._seed, trial.number, *name.encode()]).generate_state(1)[0]))

    def _seen(self, study: "optuna.Study") -> "optuna.Study":
        if not self._history:
            return study
        seen = optuna.create_study(storage=optuna.storages.InMemoryStorage(), directions=study.directions)
        for trial in study.get_trials(deepcopy=False):
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                seen.add_trial(trial)
            elif trial.state == TrialState.FAIL and trial.params:
                values = [0.0] * len(study.directions)  # the constraint alone decides
                seen.add_trial(
                    optuna.create_trial(
                        values=values, params=trial.params, distributions=trial.distributions, constraints=_FAILED
                    )
                )
        return seen
