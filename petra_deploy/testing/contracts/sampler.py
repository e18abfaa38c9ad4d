"""The contract of a sampler: it needs the study alone, learns from failures, and stays in [0, 1].

Optuna's own `optuna.testing.pytest_samplers` ask for more: spaces that are made while sampling, whole
numbers, choices. Ours search coefficients whose names are given at the start, so a sampler may refuse
all else; `tests/contracts/test_samplers.py` runs Optuna's tests on those that do not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import optuna
from optuna.trial import TrialState

from petra_deploy.core.extension import Space
from petra_deploy.testing.contracts._contract import Contract, found, skip

SPACE = Space(names=("depth", "steer", "width"))
PRESETS: Sequence[Mapping[str, float]] = ({"depth": 0.2, "steer": 0.5, "width": 0.2},
                                          {"depth": 0.5, "steer": 0.5, "width": 0.5})  # fmt: skip
Point = Mapping[str, float]
_TRIALS = 30


class SamplerContract(Contract):
    """`yardsticks` are samplers that learn from nothing, on purpose."""

    kind = "sampler"
    yardsticks: ClassVar[Sequence[str]] = ()

    def test_every_value_lies_between_0_and_1(self, sampler: str) -> None:
        for point in play(sampler, _TRIALS):
            assert point.keys() == set(SPACE.names)
            assert all(0.0 <= value <= 1.0 for value in point.values()), point

    def test_the_same_seed_and_study_give_the_same_points(self, sampler: str) -> None:
        assert play(sampler, _TRIALS, seed=3) == play(sampler, _TRIALS, seed=3)

    def test_another_seed_gives_other_points(self, sampler: str) -> None:
        count = len(PRESETS)
        assert play(sampler, _TRIALS, seed=3)[count:] != play(sampler, _TRIALS, seed=4)[count:]

    def test_no_point_is_given_twice(self, sampler: str) -> None:
        points = [tuple(point.values()) for point in play(sampler, _TRIALS)]
        assert len(set(points)) == len(points)

    def test_rebuilt_on_the_same_storage_it_goes_on_as_the_living_one(self, sampler: str) -> None:
        storage = optuna.storages.InMemoryStorage()
        play(sampler, _TRIALS // 2, storage=storage)
        assert play(sampler, _TRIALS - _TRIALS // 2, storage=storage) == play(sampler, _TRIALS)

    def test_it_goes_on_where_every_trial_fails(self, sampler: str) -> None:
        points = play(sampler, _TRIALS, dead=lambda point: True)
        assert len({tuple(point.values()) for point in points}) == _TRIALS

    def test_it_asks_less_where_trials_fail(self, sampler: str) -> None:
        """The best lies at the edge of a dead region: who skips failures walks into it for ever."""
        if sampler in self.yardsticks:
            skip(f"{sampler} is a yardstick that learns from nothing")

        def dead(point: Point) -> bool:
            return point["width"] > 0.5

        late = [dead(point) for seed in range(3) for point in play(sampler, 3 * _TRIALS, seed=seed, dead=dead)[-20:]]
        assert sum(late) / len(late) < 0.5, f"{sum(late)} of the last {len(late)} points lie where all fail"

    def test_it_gets_better_than_its_presets(self, sampler: str) -> None:
        points = play(sampler, 2 * _TRIALS)
        assert min(map(badness, points)) < min(map(badness, PRESETS))


def badness(point: Point) -> float:
    """Falls with depth and width, and is least at a steer of 0.7."""
    return 2.0 - point["depth"] - point["width"] + (point["steer"] - 0.7) ** 2


def play(
    name: str, trials: int, *, seed: int = 0, dead: Callable[[Point], bool] = lambda point: False,
    storage: optuna.storages.BaseStorage | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """The points of all trials of a study after `trials` more, asked for as `driver/search/study.py` does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = found("sampler", name).create(SPACE, PRESETS, seed)
    study = optuna.create_study(storage=storage, study_name="contract", sampler=sampler, load_if_exists=True)
    if not study.get_trials(deepcopy=False):
        for preset in PRESETS:
            study.enqueue_trial(dict(preset))
    for _ in range(trials):
        trial = study.ask()
        point = {coefficient: trial.suggest_float(coefficient, 0.0, 1.0) for coefficient in sorted(SPACE.names)}
        if dead(point):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, badness(point))
    return [dict(sorted(trial.params.items())) for trial in study.get_trials(deepcopy=False)]
