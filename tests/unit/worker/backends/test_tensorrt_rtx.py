"""The real TensorRT-RTX compiler, which needs no GPU, on every family of models that we export."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from petra_deploy.core import machine
from petra_deploy.core.errors import BadInput, Problem
from petra_deploy.core.machine import CudaDevice
from petra_deploy.core.outcome import Engine, Graph
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.testing.families import FAMILIES
from petra_deploy.worker.backends import _trt, _trt_cache
from petra_deploy.worker.backends import tensorrt_rtx as backend
from petra_deploy.worker.backends._trt_build import Settings
from petra_deploy.worker.techniques import half, quantize_fp8, quantize_ort
from tests.models import CASES, Case
from tests.unit.worker.nets import add_graph, save_net
from tests.unit.worker.techniques.graphs import exported, inside

pytest.importorskip("tensorrt_rtx", reason="its wheels are for Linux and Windows on x86-64")

HERE: dict[str, Callable[[], Case]] = {
    **FAMILIES, **{name: CASES[name] for name in ("mobilenet", "gru_mean", "two_inputs")},
}  # fmt: skip
MODERN = ("8.6", "8.9", "12.0")
ADA = Target(name="ada", runtime="tensorrt_rtx", device="cuda", compute_capability="8.9", sparsity=("2:4",))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETRA_CACHE_DIR", str(tmp_path / "users"))


@pytest.fixture(scope="module", params=HERE)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path, Path]:
    """A case, its exported graph, and a folder for more."""
    folder = tmp_path_factory.mktemp(request.param)
    case = HERE[request.param]()
    return case, exported(case, folder), folder


def halved(case: Case, graph: Path, folder: Path) -> Path:
    return Path(half.apply(graph, half.Options(), case.tools(folder)).model)


def test_every_family_compiles_in_every_precision_and_for_turing_in_fp16(family: tuple[Case, Path, Path]) -> None:
    case, graph, folder = family
    assert {capability: backend.compile_check(graph, capability) for capability in MODERN} == dict.fromkeys(MODERN, ())
    refused = backend.compile_check(graph, "7.5")
    assert refused
    assert all(line.startswith("TensorRT-RTX cannot compile ") for line in refused)
    assert all(line.endswith("for Turing (SM75): FP32 GEMM is not supported") for line in refused)
    fp16 = halved(case, graph, inside(folder, "half"))
    assert {c: backend.compile_check(fp16, c) for c in ("7.5", *MODERN)} == dict.fromkeys(("7.5", *MODERN), ())
    options = quantize_ort.Options(symmetric=True, calibration_rows=8)
    int8 = Path(quantize_ort.apply(graph, options, case.tools(inside(folder, "int8"))).model)
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(int8).graph.node}
    assert {c: backend.compile_check(int8, c) for c in MODERN} == dict.fromkeys(MODERN, ())


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "hand_encoder"])
def test_fp8_compiles_where_there_is_fp8_and_is_refused_elsewhere(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    tools = case.tools(inside(tmp_path, "fp8"))
    fp8 = Path(quantize_fp8.apply(exported(case, tmp_path), quantize_fp8.Options(calibration_rows=8), tools).model)
    for graph in (fp8, halved(case, fp8, inside(tmp_path, "half"))):
        assert {c: backend.compile_check(graph, c) for c in ("8.9", "12.0")} == {"8.9": (), "12.0": ()}
        (said,) = backend.compile_check(graph, "8.6")
        assert said.startswith("TensorRT-RTX refuses the graph: ")
        assert "fp8" in said


def test_every_refused_node_has_its_sentence(tmp_path: Path) -> None:
    save_net(tmp_path / "net.onnx", (8,))
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.node.extend(
        [helper.make_node("NoSuchOperator", ["logits"], ["a"]), helper.make_node("Odd", ["a"], ["b"], name="second")]
    )
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "odd.onnx")
    assert backend.compile_check(tmp_path / "odd.onnx", "8.6") == (
        "TensorRT-RTX refuses node 5 (NoSuchOperator): it has no such operator",
        "TensorRT-RTX refuses 'second' (Odd): it has no such operator",
    )
    (tmp_path / "torn.onnx").write_bytes(b"not a model")
    (said,) = backend.compile_check(tmp_path / "torn.onnx", "8.6")
    assert said == "TensorRT-RTX cannot read the graph: Failed to parse the ONNX model"


def test_a_capability_that_it_does_not_know_cannot_be_checked(tmp_path: Path) -> None:
    save_net(tmp_path / "net.onnx", (8,))
    with pytest.raises(Problem, match=r"cannot compile for compute capability 9\.0: it knows 7\.5, 8\.0"):
        backend.compile_check(tmp_path / "net.onnx", "9.0")


def build(store: Store, graph: Graph, folder: Path, target: Target = ADA, **settings: object) -> Engine:
    folder.mkdir()
    return backend.build(graph, store.path(graph.key) / "model.onnx", target, settings, folder)


def test_an_engine_for_a_device_that_is_not_here_is_a_plan_beside_its_graph(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store)
    engine = build(store, graph, tmp_path / "engine")
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == ["model.onnx", "model.plan", "plan.json"]
    assert engine.bytes == (tmp_path / "engine" / "model.plan").stat().st_size
    assert engine.versions == backend.describe() == {"tensorrt_rtx": machine.versions(["tensorrt-rtx"])["tensorrt-rtx"]}
    assert engine.facts["sizes"] == {"batch": [1, 16, 256]}
    assert engine.facts["operators"] == {"Conv": 1, "Flatten": 1, "GlobalAveragePool": 1, "MatMul": 1, "Relu": 1}
    note = json.loads((tmp_path / "engine" / "plan.json").read_text())
    assert (note["compute_capability"], note["device"], note["outputs"]) == ("8.9", "", ["logits"])


def test_every_setting_reaches_the_compiler(store: Store, tmp_path: Path) -> None:
    graph = add_graph(store)
    settings: dict[str, dict[str, object]] = {
        "sizes": {"sizes": {"batch": [1, 4, 8]}}, "level": {"optimization_level": 5}, "sparse": {"sparse": True},
        "workspace": {"workspace_mb": 64}, "tf32": {"tf32": False}, "on": {"cuda_graph": "on"},
        "hardware": {"hardware": "same_compute_capability"},
    }  # fmt: skip
    for name, given in settings.items():
        engine = build(store, graph, tmp_path / name, **given)
        assert engine.settings | given == engine.settings
    assert build(store, graph, tmp_path / "again", sizes={"batch": [1, 4, 8]}).facts["sizes"] == {"batch": [1, 4, 8]}


@pytest.mark.parametrize(
    ("target", "settings", "said"),
    [
        (ADA, {"builds": 3}, "several builds are compared on the device"),
        (ADA, {"sizes": {"length": [1, 2, 3]}}, "no input has a dynamic dimension 'length'"),
        (ADA, {"sizes": {"batch": [4, 2, 8]}}, "must not fall"),
        (Target(name="t", runtime="tensorrt_rtx", device="cuda", compute_capability="8.6"), {"sparse": True},
         "t does not skip 2:4 zeros"),
        (Target(name="t", runtime="tensorrt_rtx", device="cuda"), {}, "names no compute capability"),
        (replace(ADA, runtime_versions={"tensorrt_rtx": (">=1.0,<1.1", ">=99")}), {}, "ada needs >=1.0,<1.1 or >=99"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said(
    store: Store, tmp_path: Path, target: Target, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(Problem, match=said):
        build(store, add_graph(store), tmp_path / "engine", target, **settings)
    with pytest.raises(BadInput, match="no_such"):
        build(store, add_graph(store), tmp_path / "wrong", target, no_such=1)


def test_a_dynamic_dimension_beside_the_batch_needs_its_range(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    doors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", doors[:1], doors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "n.onnx")
    with pytest.raises(Problem, match="dimension 'length' of input 'x' is dynamic, and its range is not known"):
        backend.compile_check(tmp_path / "n.onnx", "8.9")
    assert backend.compile_check(tmp_path / "n.onnx", "8.9", {"length": (1, 8, 32)}) == ()


def test_a_graph_with_other_doors_than_its_signature_is_a_mismatch(store: Store, tmp_path: Path) -> None:
    graph, other = add_graph(store), add_graph(store, (4,)).signature.outputs[0]
    wrong = Graph(key=graph.key, bytes=1, signature=type(graph.signature)(
        inputs=graph.signature.inputs, outputs=(type(other)(name="scores", dtype="float32", shape=other.shape),)
    ))  # fmt: skip
    with pytest.raises(Problem, match="gives logits, its signature image and scores") as caught:
        build(store, wrong, tmp_path / "engine")
    assert caught.value.kind == "mismatch"


def test_without_a_driver_opening_is_our_error_and_no_segmentation_fault(store: Store, tmp_path: Path) -> None:
    if machine.cuda_devices():
        pytest.skip("a driver is here")
    engine = build(store, add_graph(store), tmp_path / "engine")
    code = (
        "import json, sys; from pathlib import Path\n"
        "from petra_deploy.core.errors import Problem\n"
        "from petra_deploy.worker.backends import tensorrt_rtx\n"
        "try: tensorrt_rtx.open(Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "except Problem as problem: print(problem.kind, problem.reason, problem.hint, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "engine"), json.dumps(engine.settings)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kind, reason, hint = done.stdout.strip().split("|")
    assert kind == "absent"
    assert reason == "TensorRT-RTX runs on an NVIDIA GPU, and no driver or CUDA device is here"
    assert "onnxruntime" in hint


@pytest.fixture
def as_if_ada(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """The driver's list names a device; nothing is ever run on it."""
    device = CudaDevice("NVIDIA GeForce RTX 4090", "8.9", 24 << 30)
    monkeypatch.setattr(machine, "cuda_devices", lambda: (device,))
    return device


def test_a_bundles_plan_is_not_believed_but_built_again_once(
    store: Store, tmp_path: Path, as_if_ada: CudaDevice, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, version = tmp_path / "bundle", backend.describe()["tensorrt_rtx"]
    bundle.mkdir()
    (bundle / "model.onnx").write_bytes((store.path(add_graph(store).key) / "model.onnx").read_bytes())
    made = _trt._built_here(backend.VENDOR, bundle, Settings(), 0, version)
    assert "no plan for NVIDIA GeForce RTX 4090 was built here, so it is built now" in caplog.text
    assert made.provenance.fits(version, as_if_ada.name, "8.9")
    (bundle / "model.plan").write_bytes(made.data + b"and code of a stranger")
    (bundle / "plan.json").write_text(json.dumps(made.provenance.__dict__))
    assert _trt_cache.vouched(bundle) is None
    caplog.clear()
    assert _trt._built_here(backend.VENDOR, bundle, Settings(cuda_graph="off"), 0, version) == made
    assert not caplog.text
    (bundle / "model.plan").write_bytes(made.data)
    assert _trt_cache.vouched(bundle) == made
    (bundle / "model.onnx").unlink()
    with pytest.raises(Problem, match="neither a plan that was built here nor a model"):
        _trt._built_here(backend.VENDOR, bundle, Settings(), 0, version)


def test_targets_of_the_rtx_class_only() -> None:
    assert backend.obstacles(ADA) == ()
    assert "Turing" in backend.obstacles(machine.resolve("t4"))[0]
    assert "not 9.0" in backend.obstacles(machine.resolve("h100"))[0]
    assert backend.obstacles(machine.resolve("rtx-5090")) == ()
    assert backend.obstacles(Target(name="c", runtime="tensorrt_rtx", device="cpu"))
    assert np.all([knob.choices for knob in backend.knobs(ADA).values()])
