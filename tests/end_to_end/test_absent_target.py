"""`--target t4` where there is none: a bundle whose metric is measured and whose latencies are predicted."""

import json

import numpy as np
import onnxruntime
import pytest

from petra_deploy.core import machine
from tests.end_to_end.conftest import ARGUMENTS, BRIEFLY

pytestmark = pytest.mark.skipif(bool(machine.cuda_devices()), reason="this machine has a CUDA device")


@pytest.fixture(scope="module")
def predicted(place):
    done = place.petra(
        "optimize",
        *BRIEFLY,
        "--target",
        "t4",
        "--objective",
        "size",
        "--trials",
        3,
        "--time",
        "3m",
        "--out",
        "run-t4",
    )  # so small a network is not faster on any GPU, but smaller
    assert done.code == 0, done.err
    return done


def test_the_first_and_the_last_line_say_predicted(predicted):
    first, last = predicted.err.splitlines()[0], predicted.out.splitlines()[-1]
    assert first.startswith("note: t4 is not here (it needs a CUDA device")
    assert "predicted" in first
    assert last.startswith("no t4 has run it: every latency and speedup above is predicted")
    assert "over FP16" in predicted.out


def test_every_figure_of_time_is_predicted_and_the_metric_is_measured(place, predicted):
    said = json.loads((place.folder / "run-t4/bundle/manifest.json").read_text())
    assert (said["target"]["name"], said["target"]["runtime"]) == ("t4", "tensorrt")
    assert said["speedup"]["origin"] == said["speedup_over_fp16"]["origin"] == "predicted"
    for side in (said["baseline"], said["candidate"]):
        assert side["latency_ms"]["origin"] == "predicted"
        assert side["latency_ms"]["p99"] is None
    assert said["speedup"]["low"] < said["speedup"]["value"] < said["speedup"]["high"]
    assert said["metric"]["origin"] == "measured"
    assert said["metric"]["split"] == "test"
    assert any("predicted" in note for note in said["notes"])
    assert "half" in said["techniques"]


@pytest.mark.skipif(not machine.installed("tensorrt_rtx"), reason="its wheels are for Linux and Windows on x86-64")
def test_what_ships_was_compiled_as_a_check_and_a_note_says_of_what(place, predicted):
    said = json.loads((place.folder / "run-t4/bundle/manifest.json").read_text())
    (note,) = [note for note in said["notes"] if "compute capability 7.5" in note]
    assert note.startswith(("compiles for", "not compiled as a check for", "TensorRT-RTX 1"))


def test_the_file_that_ships_has_the_metric_of_the_manifest(place, predicted):
    bundle = place.folder / "run-t4/bundle"
    said = json.loads((bundle / "manifest.json").read_text())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
    with np.load(place.folder / "test.npz") as data:
        x, y = data["image"], data["labels"]
    (output,) = session.run(None, {"image": x})
    assert (output.argmax(1) == y).mean() == pytest.approx(said["metric"]["candidate"], abs=0.006)  # two rows of 397
    assert place.petra("verify", "run-t4/bundle").code == 0


def test_triton_builds_the_engine_there(place, predicted):
    (config,) = (place.folder / "run-t4/bundle/triton").glob("*/config.pbtxt")
    text = config.read_text()
    assert "KIND_GPU" in text
    assert 'name: "tensorrt"' in text
    assert "intra_op_thread_count" not in text


def test_with_require_measured_it_is_3_and_nothing_is_left(place):
    done = place.petra("optimize", *ARGUMENTS, "--target", "t4", "--require-measured", "--out", "run-refused")
    assert done.code == 3
    assert "--require-measured was given" in done.err
    assert "Traceback" not in done.err
