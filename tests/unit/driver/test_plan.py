"""Which techniques a search gets: those that apply, but for what is off or left out, by name and with the reason."""

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.plan import Inspected, Offer, Phase
from petra_deploy.driver.plan import asked
from tests.unit.driver.search import simulation

SEEN = Inspected(
    layout=simulation.plan().layout,
    offers=(
        Offer(technique="prune", phase=Phase.SHRINK, acts_on="module"),
        Offer(technique="sparsify", phase=Phase.SHRINK, acts_on="module", off="dense kernels gain nothing"),
    ),
    unavailable={"shrink_rnn": "the model has no recurrent layer"},
)  # fmt: skip


def names(inspected: Inspected) -> list[str]:
    return [offer.technique for offer in inspected.offers]


def test_what_is_off_is_searched_only_where_it_is_asked_for() -> None:
    found = asked(SEEN, (), ())
    assert names(found) == ["prune"]
    assert "--with sparsify" in found.unavailable["sparsify"]
    assert "dense kernels gain nothing" in found.unavailable["sparsify"]
    assert names(asked(SEEN, ("sparsify",), ())) == ["prune", "sparsify"]


def test_what_is_left_out_is_not_searched_and_says_so() -> None:
    found = asked(SEEN, (), ("prune",))
    assert names(found) == []
    assert found.unavailable["prune"] == "left out (--without prune)"


def test_asking_for_what_does_not_apply_is_an_error_with_the_reason() -> None:
    with pytest.raises(BadInput, match="no recurrent layer"):
        asked(SEEN, ("shrink_rnn",), ())
