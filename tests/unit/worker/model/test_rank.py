"""The rank that each rule keeps, against its definition written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petra_deploy.worker.model import rank

VALUES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(lambda v: np.sort(np.array(v))[::-1])
SHARES = st.floats(0, 0.99)


@given(VALUES, SHARES)
def test_energy_is_the_fewest_values_whose_squares_hold_what_is_not_given_up(values: np.ndarray, share: float) -> None:
    found = rank.kept(torch.from_numpy(values.copy()), "energy", share)
    held = np.cumsum(values**2) / np.sum(values**2)
    assert held[found - 1] >= 1 - share - 1e-9
    assert found == 1 or held[found - 2] < 1 - share + 1e-9


@given(VALUES, SHARES)
def test_quantile_keeps_all_values_at_or_above_it(values: np.ndarray, share: float) -> None:
    found = rank.kept(torch.from_numpy(values.copy()), "quantile", share)
    limit = np.quantile(values, share)
    clear = np.abs(values - limit) > 1e-9 * limit
    assert abs(found - np.sum(values >= limit)) <= np.sum(~clear)


@given(VALUES, SHARES)
def test_ratio_keeps_that_share_of_the_rank_rounded_up(values: np.ndarray, share: float) -> None:
    found = rank.kept(torch.from_numpy(values.copy()), "ratio", share)
    assert 1 <= found <= len(values)
    assert found - 1 <= (1 - share) * len(values) + 1e-6
    assert found >= (1 - share) * len(values) - 1e-6


@pytest.mark.parametrize("rule", rank.RULES)
def test_giving_up_more_never_keeps_more_and_nothing_given_up_is_the_full_rank(rule: rank.Rule) -> None:
    values = torch.tensor([5.0, 3.0, 3.0, 1.0, 0.5])
    ranks = [rank.kept(values, rule, share) for share in (0.0, 0.1, 0.3, 0.5, 0.9)]
    assert ranks[0] == 5
    assert ranks == sorted(ranks, reverse=True)


def test_a_matrix_of_rank_two_has_all_its_energy_in_two_values() -> None:
    matrix = torch.outer(torch.arange(1.0, 6), torch.ones(7)) + torch.outer(torch.ones(5), torch.arange(7.0))
    assert rank.kept(torch.linalg.svdvals(matrix.double()), "energy", 0.0) == 2


def test_ranks_are_rounded_up_but_never_beyond_the_full_rank() -> None:
    assert [rank.rounded(r, 16, 40) for r in (1, 16, 17, 33)] == [16, 16, 32, 40]
