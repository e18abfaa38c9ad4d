from dataclasses import replace

import pytest

from petra_deploy.core.job import Build, Limits, Measure
from petra_deploy.core.outcome import Done, Engine, Failed, Graph
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature, Split
from petra_deploy.driver.dispatch import Dispatch

NOTHING = Signature(inputs=(), outputs=())
TARGET = Target(name="cpu", runtime="onnxruntime", device="cpu")


class Scripted:
    """An executor that gives prepared answers in turn, and counts."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def run(self, job):
        self.asked += 1
        return self.answers.pop(0)

    def close(self):
        pass


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def engine(store):
    key = store.add(lambda folder: (folder / "model.onnx").write_bytes(b"x"))
    return Engine(key=key, graph="g", backend="onnxruntime", signature=NOTHING, bytes=1)


def build(**settings):
    return Build(graph=Graph(key="g", signature=NOTHING, bytes=1), target=TARGET, settings=settings)


def failed(kind):
    return Failed(job="build", kind=kind, reason="why")


def test_an_answer_is_found_again_and_not_made_again(store, engine):
    executor = Scripted(Done(value=engine, seconds=1.0))
    run = Dispatch(store, executor)
    assert run(build()).value == engine
    again = run(build())
    assert (again.value, again.cached, executor.asked) == (engine, True, 1)


def test_limits_take_no_part_in_the_key_but_fields_do(store, engine):
    executor = Scripted(Done(value=engine, seconds=1.0), Done(value=engine, seconds=1.0))
    run = Dispatch(store, executor)
    run(build())
    assert run(replace(build(), limits=Limits(seconds=5))).cached
    assert not run(build(threads=2)).cached


def test_an_answer_whose_files_are_gone_is_made_again(store, engine):
    executor = Scripted(Done(value=engine, seconds=1.0), Done(value=engine, seconds=2.0))
    run = Dispatch(store, executor)
    run(build())
    (store.path(engine.key) / "model.onnx").unlink()
    store.path(engine.key).rmdir()
    assert not run(build()).cached


def test_a_torn_answer_is_made_again(store, engine):
    executor = Scripted(Done(value=engine, seconds=1.0), Done(value=engine, seconds=2.0))
    run = Dispatch(store, executor)
    run(build())
    (answer,) = (store.root / "answers").glob("*.json")
    answer.write_text(answer.read_text()[:20])
    assert run(build()).seconds == 2.0


@pytest.mark.parametrize(("kind", "asked"), [("unsupported", 1), ("mismatch", 1), ("timeout", 2), ("crash", 2)])
def test_only_failures_that_last_are_remembered(store, kind, asked):
    executor = Scripted(failed(kind), failed(kind))
    run = Dispatch(store, executor)
    assert run(build()).kind == kind
    assert run(build()).kind == kind
    assert executor.asked == asked


def test_a_lost_worker_is_tried_once_more(store, engine):
    executor = Scripted(failed("lost"), Done(value=engine, seconds=1.0))
    assert isinstance(Dispatch(store, executor)(build()), Done)


def test_a_measurement_is_never_remembered(store, engine):
    split = Split(key="s", rows=1, labelled=False)
    job = Measure(engine=engine, baseline=engine, target=TARGET, split=split)
    executor = Scripted(failed("mismatch"), failed("mismatch"))
    run = Dispatch(store, executor)
    run(job), run(job)
    assert executor.asked == 2
