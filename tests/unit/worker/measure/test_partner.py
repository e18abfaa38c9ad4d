"""Engines in processes of their own, against the same engines in this one."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Build
from petra_deploy.core.outcome import Engine
from petra_deploy.core.rounds import figures
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.context import Context
from petra_deploy.worker.jobs.measure import make_feeds, opener
from petra_deploy.worker.measure import loop, partner
from tests.unit.worker.nets import CPU, add_graph, add_split

ROWS = [{"image": np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)}]


@pytest.fixture
def engine(store: Store) -> Engine:
    return Inline(store).must(Build(graph=add_graph(store, (16, 16)), target=CPU))


def opened(engine: Engine, store: Store, overlay: Path | None = None) -> partner.Partner:
    return partner.openers({"candidate": engine}, store, overlays={"candidate": overlay})["candidate"](1)


def test_a_partner_times_each_call_that_it_is_asked_for(engine: Engine, store: Store) -> None:
    with opened(engine, store) as side:
        assert isinstance(side, loop.Away)
        for calls in (1, 7):
            walls, cpus = side.timed(ROWS, calls)
            assert len(walls) == len(cpus) == calls
            assert min(walls) > 0
        assert side.versions == engine.versions


def test_an_engine_is_as_fast_in_a_partner_as_in_this_process(engine: Engine, store: Store) -> None:
    samples = Samples.open(store.path(add_split(store).key))
    feeds = {batch: make_feeds(samples, engine, batch) for batch in (1, 16)}
    sides = {
        "baseline": opener(engine, Context(store, print)),
        **partner.openers({"candidate": engine}, store, overlays={}),
    }
    rounds = loop.measure(sides, feeds, rounds=4, seed=0, seconds=0.2, log=print)
    found = figures(rounds)
    assert [latency.batch for latency in found.candidate] == [1, 16]
    for speedup in found.speedups:
        assert speedup.known() == pytest.approx(1.0, abs=0.5)
    calls = rounds[0]["batches"]["1"]
    assert len(calls["candidate"]["hot_ns"]) == len(calls["candidate"]["cpu_ns"]) >= loop.RUN_CALLS
    assert len(calls["candidate"]["first_ns"]) == calls["order"].count("candidate")


def test_an_engine_that_cannot_be_opened_is_a_problem_of_its_own_kind(store: Store, engine: Engine) -> None:
    broken = store.add(lambda folder: (folder / "model.onnx").write_bytes(b"no model"))
    fields = {**engine.__dict__, "key": broken}
    with pytest.raises(Problem, match="refuses the model") as told:
        opened(Engine(**fields), store)
    assert told.value.kind == "unsupported"


def test_feeds_that_do_not_fit_are_said_and_the_partner_ends(store: Store, engine: Engine) -> None:
    with opened(engine, store) as side, pytest.raises(Problem, match="cannot run"):
        side.timed([{"image": np.zeros((1, 2), np.float32)}], 1)


def test_a_partner_that_dies_says_how(store: Store, engine: Engine) -> None:
    with opened(engine, store) as side:
        os.kill(side._process.pid, signal.SIGKILL)
        with pytest.raises(Problem, match="SIGKILL") as told:
            side.timed(ROWS, 1)
    assert told.value.kind == "crash"


def test_closing_ends_the_process(store: Store, engine: Engine) -> None:
    side = opened(engine, store)
    side.close()
    side.close()
    assert side._process.returncode == 0
