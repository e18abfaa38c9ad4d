"""A run that is killed, and interrupted, goes on where it was: nothing is lost, nothing done twice."""

import os
import signal
import time

import pytest

from tests.end_to_end.conftest import BRIEFLY


@pytest.fixture
def started(place):
    """Starts a run and waits until so many of its trials are on disk; what still runs in the end is killed."""
    processes = []

    def start(trials, out, *arguments):
        processes.append(process := place.start("optimize", *arguments, "--out", out))
        deadline = time.monotonic() + 240
        while len(list(out.glob("trials/*/outcome.json"))) < trials:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_stops_and_resumes_lose_and_repeat_nothing(place, started):
    """Killed in its second trial, interrupted in its third, and resumed after each."""
    out, arguments = place.folder / "run-stopped", (*BRIEFLY, "--runtime", "onnxruntime", "--max-drop", 5, "--batch", 1)
    for trials, how, code, more in (
        (1, signal.SIGKILL, -9, ("--trials", 3, "--time", "10m")),
        (2, signal.SIGINT, 130, ("--resume",)),
    ):
        before = {p: p.read_bytes() for p in out.glob("trials/*/*.json")}
        run = started(trials, out, *arguments, *more)
        second = place.petra("optimize", *arguments, "--out", out)
        assert (second.code, str(run.pid) in second.err) == (2, True), second.err
        os.kill(run.pid, how)
        assert run.wait() == code
        assert {p: p.read_bytes() for p in before} == before
        if (out / "bundle").exists():
            assert place.petra("verify", out / "bundle").code == 0
    before = {p: p.read_bytes() for p in out.glob("trials/*/*.json")}
    done = place.petra("optimize", *arguments, "--out", out, "--resume", "--json")
    assert done.code == 0, done.err
    assert done.json["runtime"]["name"] == "onnxruntime"
    assert done.json["candidates_considered"] == 3
    assert {p: p.read_bytes() for p in before} == before
    recipes = [p.read_text() for p in out.glob("trials/*/strategy.json")]
    assert len(recipes) == len(set(recipes)) == 3
