"""Profiles on disk: whole, read again, found to be of their engine; and what is wrong with a file is said."""

import json
from pathlib import Path

import pytest

from petra_deploy.core import files, tails
from petra_deploy.core.errors import BadInput
from petra_deploy.core.profile import Benched, EngineFacts, Profile, Wanted
from petra_deploy.core.store import digest_file
from petra_deploy.driver import profiles
from petra_deploy.driver.bench import joined, seconds_of
from tests.unit.core.test_tails import server, stream


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "net.onnx"
    path.parent.mkdir()
    path.write_bytes(b"a model")
    return path


def profile(model: Path) -> Profile:
    scenarios = (
        tails.scenario_of("single-stream", 1, 1, {"seed": 0}, [stream(0), stream(1)]),
        tails.scenario_of("server", 1, 1, {"limit_ms": 10.0}, [server(100 / 3, 1)]),
    )
    facts = EngineFacts(name="net.onnx", file=str(model), sha256=digest_file(model), bytes=7, runtime="onnxruntime")
    return Profile(created="2026-11-26T12:00:00+00:00", target="cpu", engine=facts,
                   measured=Benched(scenarios=scenarios, sittings=({"starts": []},)))  # fmt: skip


def test_a_profile_is_read_as_it_was_written_and_its_figures_follow_from_its_rounds(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "profiles" / "cpu" / "net.json"
    made = profile(model)
    profiles.write(path, made)
    read = profiles.read(path)
    assert read.measured == made.measured
    assert files.dumps(tails.again(read.measured)) == files.dumps(made.measured)
    assert read.scenario("server", 1) == made.measured.scenarios[1]
    assert read.engine.file == "../../models/net.onnx"
    assert profiles.subject_of(path, read) == model
    model.write_bytes(b"another")
    assert profiles.subject_of(path, read) is None


def test_figures_of_an_older_file_still_follow_from_its_rounds() -> None:
    old = profiles.read(Path(__file__).parents[2] / "house" / "files_of_version_1" / "profile.json")
    assert len(old.measured.scenarios) == 4
    assert files.dumps(tails.again(old.measured)) == files.dumps(old.measured)


def test_a_list_of_numbers_is_one_line(model: Path, tmp_path: Path) -> None:
    profiles.write(tmp_path / "p.json", profile(model))
    text = (tmp_path / "p.json").read_text()
    assert len(text.splitlines()) < 300
    assert json.loads(text)["measured"]["scenarios"][0]["rounds"][0]["yardstick"]["hot_ns"] == [500_000] * 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: "", "is not valid JSON"),
        (lambda text: text.replace("profile/1", "profile/2"), "of version 2; this petra-deploy reads up to 1"),
        (lambda text: text.replace("petra-deploy/profile/1", "petra-deploy/manifest/1"), "is not a profile"),
        (lambda text: "[1, 2]", "is not a profile: it is no file of petra-deploy's"),
        (lambda text: text.replace('"target": "cpu"', '"target": 3'), "target: input should be a valid string"),
        (lambda text: text.replace('"target": "cpu"', '"target": "cpu", "colour": 1'), "colour"),
        (lambda text: text.replace('"runtime"', '"runtimes"'), "engine.runtime"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_good_is_said_with_its_name_and_the_place(
    model: Path, tmp_path: Path, change: "object", said: str
) -> None:
    path = tmp_path / "p.json"
    profiles.write(path, profile(model))
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        profiles.read(path)
    assert "p.json" in caught.value.message
    assert said in caught.value.message


def test_bytes_that_are_no_text_are_said_too(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        profiles.read(tmp_path / "p.json")


def test_where_a_profile_cannot_be_written_is_said_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    profiles.writable(tmp_path / "new" / "folder" / "p.json")
    assert not (tmp_path / "new").exists()
    for path in (tmp_path / "p.toml", model / "p.json"):
        with pytest.raises(BadInput):
            profiles.writable(path)


def test_the_time_is_divided_and_a_fast_engine_is_not_kept_running_for_it() -> None:
    assert seconds_of(Wanted(), 60.0) == 1.0
    assert seconds_of(Wanted(), 300.0) == 5.0
    more = Wanted(scenarios=("single-stream", "multi-stream", "offline", "server"), threads=(1, 2))
    assert 0.1 < seconds_of(more, 60.0) < seconds_of(Wanted(), 60.0)
    assert seconds_of(Wanted(), 5.0) == 0.1


def test_several_numbers_of_threads_are_one_measurement(model: Path) -> None:
    one = profile(model).measured
    both = joined([one, one])
    assert len(both.scenarios) == 4
    assert len(both.sittings) == 2
    assert both.cold == one.cold
