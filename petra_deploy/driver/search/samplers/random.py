"""Uniform random coefficients: the yardstick that every other sampler must beat."""

from collections.abc import Mapping, Sequence

import optuna

from petra_deploy.core.extension import Space


def create(space: Space, presets: Sequence[Mapping[str, float]], seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)
