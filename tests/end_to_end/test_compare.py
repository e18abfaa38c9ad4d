"""`petra-deploy compare` as CI runs it: real networks of different depth, exit codes, reports, records."""

import json
import xml.etree.ElementTree as Xml

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def chain(path, layers, width=16, seed=0, side=16):
    """Convolutions with ReLU, then class scores; `seed` of the last layer only."""
    random = np.random.default_rng(3)
    nodes, weights = [], []
    for index in range(layers):
        weight = random.standard_normal((width, width, 3, 3)).astype(np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"]))
    head = np.random.default_rng(seed).standard_normal((width, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", width, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture(scope="module")
def nets(place):
    folder = place.folder / "run-nets"
    folder.mkdir()
    chain(folder / "six.onnx", 6)
    chain(folder / "twelve.onnx", 12)
    chain(folder / "other.onnx", 6, seed=1)
    chain(folder / "narrow.onnx", 6, width=8)
    return folder


@pytest.fixture(scope="module")
def slower(place, nets):
    """Twelve layers against six; leaves gate.json, gate.xml and gate.md."""
    return place.petra("compare", nets / "six.onnx", nets / "twelve.onnx", "--fail-size-above", "10%", "--json",
                       "--save", "run-nets/gate.json", "--junit", "run-nets/gate.xml",
                       "--markdown", "run-nets/gate.md")  # fmt: skip


def test_a_slower_engine_fails_with_exit_1_and_says_so_in_every_form(place, nets, slower):
    done = slower
    assert done.code == 1, done.err
    said = done.json
    assert said["verdict"] == "fail"
    assert [v["verdict"] for v in said["verdicts"]] == ["fail", "fail"]
    latency = said["verdicts"][0]["figure"]
    assert latency["low"] > 1.05
    assert latency["n"] >= 6
    assert "rounds" not in said
    cases = Xml.parse(nets / "gate.xml").getroot().findall(".//testcase")
    assert [case.find("failure") is not None for case in cases] == [True, True]
    markdown = (nets / "gate.md").read_text()
    assert "| latency at batch 1, +5% |" in markdown
    assert "**fail**" in markdown
    again = place.petra("compare", "run-nets/gate.json", "--json")
    assert again.code == 1
    assert again.out == done.out  # judged anew from the raw rounds, to the byte
    kept = json.loads((nets / "gate.json").read_text())
    assert str(place.folder) not in json.dumps(kept)
    assert len(kept["rounds"]) == latency["n"]


def test_an_engine_is_not_slower_than_itself_by_a_fifth(place, nets):
    done = place.petra("compare", nets / "six.onnx", nets / "six.onnx", "--fail-above", "20%")
    assert done.code == 0, done.err
    assert "verdict: pass" in done.out


def test_what_is_not_settled_is_inconclusive_and_fails_only_when_strict(place, nets):
    line = ["compare", nets / "six.onnx", nets / "six.onnx", "--fail-above", "0%", "--rounds", 6, "--quiet"]
    for seed in range(5):  # equal engines may be settled by chance, one time in twenty
        loose = place.petra(*line, "--seed", seed, "--save", "run-nets/open.json")
        if loose.out.strip() == "inconclusive":
            break
    assert (loose.code, loose.out.strip()) == (0, "inconclusive")
    assert place.petra("compare", "run-nets/open.json", "--quiet", "--strict").code == 1


def test_a_gate_on_the_metric_needs_rows_and_judges_both_on_them(place, nets):
    random = np.random.default_rng(5)
    x = random.standard_normal((300, 16, 16, 16)).astype(np.float32)
    session = __import__("onnxruntime").InferenceSession(str(nets / "six.onnx"))
    labels = session.run(None, {"x0": x})[0].argmax(1)
    np.savez(nets / "rows.npz", x0=x, labels=labels)
    line = ["compare", nets / "six.onnx", nets / "other.onnx", "--fail-drop-above", "1", "--fail-above", "50%"]
    bare = place.petra(*line)
    assert bare.code == 2
    assert "--data" in bare.err
    done = place.petra(*line, "--data", nets / "rows.npz", "--json")
    assert done.code == 1, done.err
    gates = {v["gate"]["what"]: v for v in done.json["verdicts"]}
    assert gates["metric"]["verdict"] == "fail"
    assert gates["metric"]["figure"]["value"] > 30
    assert gates["metric"]["gate"]["alpha"] == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("base", "new", "said"),
    [
        ("six.onnx", "narrow.onnx", "cannot be fed alike"),
        ("six.onnx", "absent.onnx", "no such file"),
        ("six.onnx", "rows.txt", "is no engine"),
        ("broken.json", "six.onnx", "is not valid JSON"),
        ("future.json", "six.onnx", "version 9"),
        ("other.json", "six.onnx", "is not a profile"),
        ("six.onnx", ".", "holds no model.onnx"),
    ],
)
def test_what_cannot_be_compared_is_told_with_exit_2(place, nets, base, new, said):
    (nets / "rows.txt").write_text("no engine")
    (nets / "broken.json").write_text('{"schema": "petra-deploy/profile/1", ')
    (nets / "future.json").write_text('{"schema": "petra-deploy/profile/9"}')
    (nets / "other.json").write_text('{"schema": "petra-deploy/run/1"}')
    done = place.petra("compare", nets / base, nets / new)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(place, nets):
    (nets / "file").write_text("in the way")
    for option in ("--save", "--junit", "--markdown"):
        done = place.petra("compare", nets / "six.onnx", nets / "twelve.onnx", option, "run-nets/file/gate.json")
        assert done.code == 2
        assert "cannot be written" in done.err
        assert "measuring" not in done.err


def test_one_engine_alone_and_a_torn_record_are_told(place, nets, slower):
    for name, said in (("six.onnx", "nothing to compare"), ("cut.json", "cannot be judged"), ("late.json", "later")):
        (nets / "late.json").write_text('{"schema": "petra-deploy/comparison/2"}')
        kept = json.loads((nets / "gate.json").read_text())
        del kept["rounds"][0]["batches"]["1"]["candidate"]["hot_ns"]
        (nets / "cut.json").write_text(json.dumps(kept))
        done = place.petra("compare", nets / name)
        assert done.code == 2
        assert said in done.err
        assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def profile(place, nets):
    (nets / "gone.onnx").write_bytes((nets / "six.onnx").read_bytes())
    done = place.petra("bench", nets / "gone.onnx", "--scenario", "single-stream", "--batch", 1, "--rounds", 6,
                       "--time", "20s", "--save", "run-nets/gone.json", "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    return nets / "gone.json"


def test_a_profile_stands_for_its_engine_which_is_measured_anew(place, nets, profile):
    done = place.petra("compare", profile, nets / "twelve.onnx", "--json")
    assert done.code == 1, done.err
    assert done.json["paired"] is True
    assert done.json["base"]["name"] == "gone.onnx"


def test_a_profile_stands_for_the_runtime_and_the_threads_it_was_made_with(place, nets):
    done = place.petra("bench", nets / "six.onnx", "--scenario", "single-stream", "--batch", 1, "--rounds", 5,
                       "--threads", 2, "--runtime", "openvino", "--time", "15s", "--save", "run-nets/two.json",
                       "--quiet")  # fmt: skip
    assert done.code == 0, done.err
    base = place.petra("compare", "run-nets/two.json", nets / "six.onnx", "--json").json["base"]
    assert (base["runtime"], base["settings"]["threads"]) == ("openvino", 2)
    refused = place.petra("compare", "run-nets/two.json", "run-nets/gone.json", "--recorded")
    assert refused.code == 2
    assert "2 thread(s)" in refused.err


def test_where_the_engine_has_gone_its_record_is_compared_through_the_yardstick(place, nets, profile):
    (nets / "gone.onnx").rename(nets / "hidden.onnx")
    try:
        done = place.petra("compare", profile, nets / "twelve.onnx", "--json")
    finally:
        (nets / "hidden.onnx").rename(nets / "gone.onnx")
    assert done.code in (0, 1), done.err
    assert done.json["paired"] is False
    assert "is not there, or has changed since" in done.err
    assert "different times" in done.json["warnings"][0]
    assert done.json["verdicts"][0]["figure"]["value"] > 1.3  # twice the layers


def test_profiles_of_two_machines_are_compared_only_where_that_is_asked_for(place, nets, profile):
    foreign = json.loads(profile.read_text())
    foreign["measured"]["machine"]["cpu"] = "another processor"
    (nets / "foreign.json").write_text(json.dumps(foreign))
    line = ["compare", profile, nets / "foreign.json", "--recorded"]
    refused = place.petra(*line)
    assert refused.code == 2
    assert "two machines" in refused.err
    assert "--cross-machine" in refused.err
    done = place.petra(*line, "--cross-machine", "--json")
    assert "nothing of the engines alone" in done.json["warnings"][0]


def test_explain_names_the_layers_that_got_slower(place, nets):
    done = place.petra("compare", nets / "six.onnx", nets / "twelve.onnx", "--explain", "--json")
    assert done.code == 1, done.err
    assert done.json["explained"]
