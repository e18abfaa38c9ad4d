import numpy as np
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.data import Brought
from petra_deploy.worker.workload.splits import complete
from petra_deploy.worker.workload.table import Table


def table(rows: int, classes: int | None = 4, seed: int = 0) -> Table:
    generator = np.random.default_rng(seed)
    target = None if classes is None else generator.integers(0, classes, rows)
    return Table({"x": np.arange(rows, dtype=np.float32)[:, None] + 1000 * seed}, target, "data")


def rows_of(part: Table) -> set[float]:
    return set(part.inputs["x"][:, 0].tolist())


def test_one_table_is_cut_60_20_20_and_nothing_is_lost_or_doubled():
    parts, _ = complete(Brought(whole=table(200)), seed=1)
    assert [len(parts[n]) for n in ("train", "selection", "test")] == [120, 40, 40]
    assert rows_of(parts["train"]) | rows_of(parts["selection"]) | rows_of(parts["test"]) == rows_of(table(200))
    assert rows_of(parts["calibration"]) <= rows_of(parts["train"])


def test_the_cut_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (complete(Brought(whole=table(200)), seed)[0]["test"] for seed in (1, 1, 2))
    assert rows_of(first) == rows_of(again) != rows_of(other)


def test_every_class_is_in_every_part_in_its_share():
    whole = table(200)
    whole.target[:] = np.repeat([0, 1, 2], [150, 40, 10])
    parts, _ = complete(Brought(whole=whole), seed=0)
    for name, counts in (("train", [90, 24, 6]), ("selection", [30, 8, 2]), ("test", [30, 8, 2])):
        assert np.bincount(parts[name].target).tolist() == counts


@pytest.mark.parametrize("rows", range(30, 60))
def test_any_number_of_rows_and_odd_classes_add_up(rows):
    parts, _ = complete(Brought(whole=table(rows, classes=7, seed=rows)), seed=rows)
    assert sum(len(parts[n]) for n in ("train", "selection", "test")) == rows
    assert abs(len(parts["test"]) - rows / 5) <= 2


def test_few_rows_are_refused():
    with pytest.raises(Problem, match="29 rows, too few to split"):
        complete(Brought(whole=table(29)), seed=0)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (("train", "selection", "test"), {"train": 100, "selection": 100, "test": 100}),
        (("train", "test"), {"train": 80, "selection": 20, "test": 100}),
        (("train", "selection"), {"train": 100, "selection": 50, "test": 50}),
        (("train",), {"train": 60, "selection": 20, "test": 20}),
        (("test",), {"selection": 50, "test": 50}),
        (("selection",), {"selection": 50, "test": 50}),
        (("selection", "test"), {"selection": 100, "test": 100}),
    ],
)
def test_what_is_missing_is_taken_from_what_is_there(given, made):
    brought = Brought(parts={name: table(100, seed=i) for i, name in enumerate(given)})
    parts, notes = complete(brought, seed=0)
    assert {name: len(part) for name, part in parts.items() if name != "calibration"} == made
    assert not rows_of(parts["calibration"]) & rows_of(parts["test"])
    assert not rows_of(parts["selection"]) & rows_of(parts["test"])
    assert len(given) == 3 or notes


def test_rows_that_are_in_train_and_test_are_reported():
    brought = Brought(parts={"train": table(100), "selection": table(50, seed=1), "test": table(40)})
    _, notes = complete(brought, seed=0)
    assert any("40 test rows are also in train" in note for note in notes)
