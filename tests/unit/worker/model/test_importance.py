"""importance: scores of channels judged from weights."""

import torch

from petra_deploy.worker.model.importance import channel_scores, lamp
from petra_deploy.worker.model.surgery import Coupling, Place
from tests.models import CASES


def test_lamp_is_the_square_over_the_sum_of_all_that_are_no_smaller() -> None:
    norms = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(lamp(norms), torch.tensor([9 / 9, 1 / 14, 4 / 13], dtype=torch.float64))


def test_magnitudes_are_norms_over_their_mean_in_each_layer() -> None:
    case = CASES["mlp"]()
    first, second = case.module[0].weight.detach().double(), case.module[2].weight.detach().double()
    positions = tuple((row,) for row in range(64))
    group = Coupling("0", 64, (Place("0", "out", positions), Place("2", "in", positions)))
    for importance, order in (("magnitude_l1", 1), ("magnitude_l2", 2)):
        norms = [torch.linalg.vector_norm(first, order, 1), torch.linalg.vector_norm(second, order, 0)]
        wanted = torch.stack([n / n.mean() for n in norms]).mean(0)
        torch.testing.assert_close(channel_scores(case.adapter(), group, importance, 0), wanted)  # type: ignore[arg-type]
    norms = [torch.linalg.vector_norm(first, 2, 1), torch.linalg.vector_norm(second, 2, 0)]
    wanted = torch.stack([lamp(n) for n in norms]).mean(0)
    torch.testing.assert_close(channel_scores(case.adapter(), group, "lamp", 0), wanted)
