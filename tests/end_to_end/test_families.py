"""A model of each family that people bring, through the real command; what it claims is computed again without it.

Images, series, text, event sequences, audio, and an image with numbers beside it (`families.py`).
"""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from petra_deploy import load_bundle
from petra_deploy.core import registry
from tests.end_to_end.families import FAMILIES, TEST

MAX_DROP = 3.0  # points
SLOW = ("images", "series", "audio", "events")  # `pytest -m slow`: a minute each
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]


@pytest.fixture(scope="module", params=PARAMS)
def run(request, place):
    """The folder of a finished run, and its manifest as the command printed it."""
    folder = place.folder / f"run-family-{request.param}"
    family = FAMILIES[request.param]
    family.save(folder)
    there = replace(place, folder=folder)
    rows = [f"--{part}={part}.npz" for part in ("train", "selection", "test")]
    done = there.petra("optimize", "model.pt", "--model", f"net.py:{family.build}", *rows, "--trials", 2, "--time",
                       "240s", "--batch", 1, "--max-drop", MAX_DROP, "--runtime", "onnxruntime", "--out", "out",
                       "--json", timeout=900)  # fmt: skip
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    return folder, done.json


@pytest.fixture(scope="module")
def rows(run):
    with np.load(run[0] / "test.npz") as data:
        inputs = dict(data)
    return inputs, inputs.pop("labels")


def test_the_bundle_is_faster_within_the_limit_by_techniques_that_it_names(run):
    folder, said = run
    assert said["speedup"]["low"] > 1
    assert said["metric"]["drop_points"] <= MAX_DROP
    recipe = json.loads((folder / "out/bundle/strategy.json").read_text())["strategy"]
    assert said["techniques"] == [step["technique"] for step in recipe["steps"]]
    assert set(said["techniques"]) <= set(registry.names("technique"))
    assert said["techniques"]
    assert 1 <= said["candidates_considered"] <= 2


def test_the_metric_is_what_plain_onnxruntime_finds_on_the_test_rows(run, rows):
    folder, said = run
    inputs, labels = rows
    assert said["metric"]["n"] == len(labels) == TEST
    for side, path in (("baseline", "out/baseline/model.onnx"), ("candidate", "out/bundle/model.onnx")):
        session = onnxruntime.InferenceSession(folder / path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, inputs)
        assert (logits.argmax(1) == labels).mean() == pytest.approx(said["metric"][side], abs=1e-9)
    assert said["metric"]["baseline"] > 0.9


def test_the_bundle_opens_and_answers_as_its_graph_does(run, rows):
    folder, _ = run
    inputs, labels = rows
    session = onnxruntime.InferenceSession(folder / "out/bundle/model.onnx", providers=["CPUExecutionProvider"])
    with load_bundle(folder / "out/bundle") as bundle:
        for count in (1, 7):
            few = {name: values[:count] for name, values in inputs.items()}
            (answer,) = bundle.run(few).values()
            np.testing.assert_allclose(answer, session.run(None, few)[0], rtol=1e-4, atol=1e-4)
        assert (np.argmax(bundle(*inputs.values())[0], 1) == labels).mean() > 0.88
