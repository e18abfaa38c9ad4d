"""Tree-structured Parzen estimator over all coefficients jointly (Optuna's TPESampler)."""

from collections.abc import Mapping, Sequence

import optuna

from petra_deploy.core.extension import Space
from petra_deploy.driver.search.samplers._study_only import StudyOnly


def create(space: Space, presets: Sequence[Mapping[str, float]], seed: int) -> optuna.samplers.BaseSampler:
    startup = max(len(presets), 8)

    def make(number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=number, multivariate=True, n_startup_trials=startup, constant_liar=False)

    return StudyOnly(make, seed)
