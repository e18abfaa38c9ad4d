"""Uniform random coefficients: the yardstick that every other sampler must beat."""

from collections.abc import Mapping, Sequence

import optuna

from petra_deploy.core.extension import Space
from petra_deploy.driver.search.samplers._study_only import StudyOnly


def create(space: Space, presets: Sequence[Mapping[str, float]], seed: int) -> optuna.samplers.BaseSampler:
    return StudyOnly(lambda number: optuna.samplers.RandomSampler(seed=number), seed, history=False)
