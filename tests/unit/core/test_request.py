import inspect

import pytest

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput
from petra_deploy.core.outcome import Budget, Goal
from petra_deploy.core.request import Remote, Request, arguments, differences, parse_batches, parse_duration
from petra_deploy.core.workload import LoadOptions, ModelSource

REQUEST = Request(model=ModelSource(path="/m/model.pt"), load=LoadOptions(inputs=("x:float32[1,3]",)))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1h", 3600), ("1h30m", 5400), ("1.5 m", 90), (7, 7)]
)
def test_durations_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "20 minutes", "-5m", "0", "m20", "5d", "1e3", 0, -1.0, float("nan")])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_duration(text)


def test_batches_keep_their_order() -> None:
    assert parse_batches("16,1") == (16, 1)
    for text in ("", "1,,2", "0", "-1", "a", "1,1", "1.5"):
        with pytest.raises(BadInput):
            parse_batches(text)


def test_differences_name_the_field_and_both_values() -> None:
    new = Request(model=REQUEST.model, load=REQUEST.load, goal=Goal(max_drop=2.0), target="t4")
    assert differences(REQUEST, new) == (
        "target was 'cpu' and is now 't4'",
        "goal.max_drop was 1.0 and is now 2.0",
    )
    assert not differences(REQUEST, Request(model=REQUEST.model, load=REQUEST.load, budget=Budget(trials=5)))


def test_another_machine_is_a_difference() -> None:
    def on(remote: Remote | None) -> Request:
        return Request(model=REQUEST.model, load=REQUEST.load, remote=remote)

    assert differences(on(Remote(host="a")), on(Remote(host="b"))) == ("remote.host was 'a' and is now 'b'",)
    for one, other in ((Remote(host="a"), None), (None, Remote(host="a"))):
        assert differences(on(one), on(other)) == (f"remote was {one!r} and is now {other!r}",)


def test_a_request_survives_its_file(tmp_path) -> None:
    files.write_json(tmp_path / "run.json", REQUEST)
    assert files.read_json(tmp_path / "run.json", Request) == REQUEST


def test_arguments_are_those_of_optimize() -> None:
    api = pytest.importorskip("petra_deploy.api")
    own = {"out", "resume", "storage", "on_event"}
    assert set(arguments(REQUEST)) == set(inspect.signature(api.optimize).parameters) - own
