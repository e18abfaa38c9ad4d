"""Tree-structured Parzen estimator over all coefficients jointly (Optuna's TPESampler)."""

from collections.abc import Mapping, Sequence

import optuna

from petra_deploy.core.extension import Space


def create(space: Space, presets: Sequence[Mapping[str, float]], seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(len(presets), 8))
