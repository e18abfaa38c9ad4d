"""`--target t4` where there is none: a bundle whose metric is measured and whose latencies are predicted."""

import json
from typing import get_args

import numpy as np
import onnxruntime
import pytest

from petra_deploy.core import machine
from petra_deploy.core.target import Computing, Moving, Starting
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


FAR = """
name = "far"
runtime = "onnxruntime"
device = "cpu"
instructions = ["amx"]
precisions = ["fp32", "int8"]
channel_step = 16
"""


@pytest.fixture(scope="module")
def far(place, tmp_path_factory):
    """A run for a processor that is not here, whose rates are known."""
    absent = "neon" if "avx2" in machine.instructions() else "avx2"
    rates = {"attained_gops": (Computing, 90.0), "attained_gb_s": (Moving, 20.0), "operator_us": (Starting, 1.0)}
    tables = [
        f"[{table}]\n" + "\n".join(f'"{key}" = {value}' for key in get_args(keys))
        for table, (keys, value) in rates.items()
    ]
    sources = "[sources]\n" + "\n".join(f'{name} = "made up"' for name in ("precisions", "channel_step", *rates))
    text = FAR.replace("amx", absent) + "\n\n".join([*tables, sources])
    path = tmp_path_factory.mktemp("targets") / "far.toml"
    path.write_text(text)
    done = place.petra("optimize", *BRIEFLY, "--target", path, "--batch", 1, "--trials", 1, "--time", "3m",
                       "--max-drop", 5, "--objective", "size", "--out", "run-far")  # fmt: skip
    assert done.code == 0, done.err
    return done


def test_bench_finishes_a_predicted_run_where_the_target_is(place, far):
    before = json.loads((place.folder / "run-far/bundle/manifest.json").read_text())
    assert before["speedup"]["origin"] == "predicted"
    done = place.petra("bench", "run-far")
    assert (done.code, "far is not here" in done.err) == (3, True)
    done = place.petra("bench", "run-far", "--target", "cpu", "--time", "40s", "--json")
    assert done.code == 0, done.err
    assert "of " in done.err
    assert "predictions the latency was off by a factor of" in done.err
    assert done.json["speedup"]["origin"] == done.json["candidate"]["latency_ms"]["origin"] == "measured"
    assert done.json["speedup"]["n"] >= 7
    assert done.json["target"]["name"] == "cpu"
    recipe = json.loads((place.folder / "run-far/bundle/strategy.json").read_text())
    assert (recipe["target"], recipe["promise"]["speedup"]["origin"]) == ("cpu", "measured")
    assert not [note for note in done.json["notes"] if "is predicted" in note]
    assert done.json["metric"]["split"] == "test"
    assert place.petra("verify", "run-far/bundle").code == 0
    ledger = json.loads((place.folder / "cache/profiles/cpu/ledger.json").read_text())
    mine = [entry for entry in ledger["entries"] if entry["model"] == "model"]
    assert mine
    assert all(entry["measured_ms"] > 0 and entry["predicted_ms"] > 0 for entry in mine)


def test_build_puts_the_engine_for_this_machine_into_a_bundle(place, far):
    done = place.petra("build", "run-far/bundle", "--target", "cpu")
    assert done.code == 0, done.err
    assert place.petra("verify", "run-far/bundle").code == 0
    said = json.loads((place.folder / "run-far/bundle/manifest.json").read_text())
    assert any(note.startswith("the engine was built with onnxruntime on ") for note in said["notes"])


def test_build_refuses_a_target_that_is_not_here(place, predicted):
    done = place.petra("build", "run-t4/bundle")
    assert (done.code, "t4 is not here" in done.err) == (3, True)
