from pathlib import Path

import numpy as np

from petra_deploy.core.samples import Samples


def make() -> Samples:
    return Samples({"ids/0": np.arange(14).reshape(7, 2), "mask": np.ones((7, 2), bool)}, np.arange(7))


def test_a_split_comes_back_from_disk_as_it_went_names_and_order_too(tmp_path: Path) -> None:
    make().save(tmp_path / "split")
    back = Samples.open(tmp_path / "split")
    assert list(back.inputs) == ["ids/0", "mask"]
    np.testing.assert_array_equal(back.inputs["ids/0"], make().inputs["ids/0"])
    assert back.target is not None
    np.testing.assert_array_equal(back.target, np.arange(7))


def test_without_labels_there_is_no_target(tmp_path: Path) -> None:
    Samples(make().inputs).save(tmp_path / "split")
    assert Samples.open(tmp_path / "split").target is None


def test_batches_hold_every_row_once_in_order_the_last_one_smaller() -> None:
    batches = list(make().batches(3))
    assert [len(feeds["mask"]) for feeds, _ in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([target for _, target in batches if target is not None]), np.arange(7))
    assert all(feeds["ids/0"].flags.c_contiguous for feeds, _ in batches)


def test_rows_may_be_taken_in_any_order() -> None:
    taken = make().take(np.array([5, 0]))
    assert taken.target is not None
    assert taken.target.tolist() == [5, 0]
    assert len(make().first(4)) == 4
