"""`bench` by the real command: a small ONNX file in every scenario, its profile read again."""

import json

import pytest

from petra_deploy.core import files, tails
from petra_deploy.driver import profiles
from tests.unit.worker.nets import save_net


@pytest.fixture(scope="module")
def benched(place):
    save_net(place.folder / "run-net.onnx", (16, 16))
    done = place.petra("bench", "run-net.onnx", "--scenario", "all", "--batch", "1,4", "--threads", "1,2",
                       "--rounds", 3, "--time", "30s", "--latency-limit", "100ms", "--save",
                       "run-profiles/cpu/net.json")  # fmt: skip
    assert done.code == 0, done.err
    return done


def test_every_scenario_is_in_the_table_and_in_the_profile(place, benched):
    profile = profiles.read(place.folder / "run-profiles/cpu/net.json")
    names = [(s.name, s.batch, s.threads) for s in profile.measured.scenarios]
    assert names == [
        (name, batch, threads)
        for threads in (1, 2)
        for name, batches in (("single-stream", (1, 4)), ("multi-stream", (8,)), ("offline", (1, 4)), ("server", (1,)))
        for batch in batches
    ]
    for word in ("single-stream", "multi-stream", "offline", "server", "p99.9", "cold start", "peak memory", "energy",
                 "made-up rows", "run-profiles/cpu/net.json"):  # fmt: skip
        assert word in benched.out
    assert profile.target == "cpu"
    assert profile.measured.inputs == "random"
    assert profile.engine.file == "../../run-net.onnx"
    assert profile.measured.cold is not None
    assert all(len(s.rounds) == 3 for s in profile.measured.scenarios if s.name != "server")


def test_every_figure_of_the_file_follows_from_its_rounds_byte_for_byte(place, benched):
    profile = profiles.read(place.folder / "run-profiles/cpu/net.json")
    assert files.dumps(tails.again(profile.measured)) == files.dumps(profile.measured)


def test_a_bundle_is_measured_with_its_own_settings_and_with_the_rows_given(place, optimized):
    done = place.petra("bench", "first/bundle", "--scenario", "offline", "--batch", 1, "--rounds", 2, "--time", "20s",
                       "--data", "test.npz", "--json")  # fmt: skip
    assert done.code == 0, done.err
    manifest = json.loads((place.folder / "first/bundle/manifest.json").read_text())
    assert done.json["engine"]["sha256"] == manifest["candidate"]["sha256"]
    assert done.json["engine"]["runtime"] == manifest["runtime"]["name"]
    assert done.json["measured"]["inputs"] == "data"


def test_a_target_that_is_not_here_is_exit_3(place, benched):
    done = place.petra("bench", "run-net.onnx", "--target", "t4")
    assert done.code == 3
    assert "t4 is not here" in done.err
