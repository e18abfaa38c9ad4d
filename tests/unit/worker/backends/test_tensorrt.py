"""What can be known of TensorRT without it: what is said when it is absent, which plans are believed, who wins."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import machine
from petra_deploy.core.errors import Problem, of_kind
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import TensorSpec
from petra_deploy.worker.backends import _trt_cache as cache
from petra_deploy.worker.backends import _trt_lottery as lottery
from petra_deploy.worker.backends import tensorrt as backend
from petra_deploy.worker.backends._trt_cache import Plan, Provenance
from petra_deploy.worker.backends._trt_lottery import Try, choose, difference
from petra_deploy.worker.backends._trt_vendor import admits, refused_node, sentence
from tests.unit.worker.nets import add_graph

ROOT = Path(__file__).resolve().parents[4]
T4 = machine.resolve("t4")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_either_backend_imports_neither_package() -> None:
    code = (
        "import sys, petra_deploy.worker.backends.tensorrt as a, petra_deploy.worker.backends.tensorrt_rtx as b\n"
        "from petra_deploy.core import machine\n"
        "t = machine.resolve('t4'); a.knobs(t), b.knobs(t), a.obstacles(t), b.obstacles(t)\n"
        "print({'tensorrt', 'tensorrt_rtx', 'tensorrt_bindings', 'cuda', 'torch', 'onnx'} & set(sys.modules))"
    )
    assert python(code) == "set()"


@pytest.mark.parametrize(
    ("name", "extra", "source"),
    [("tensorrt", "petra-deploy[tensorrt]", "https://pypi.nvidia.com"), ("tensorrt_rtx", "[tensorrt-rtx]", "x86-64")],
)
def test_a_package_that_is_not_here_is_an_extra_with_its_source(name: str, extra: str, source: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from petra_deploy.core import registry\n"
        "from petra_deploy.core.errors import Problem\n"
        f"backend = registry.find('backend', {name!r})\n"
        "assert backend.describe() == {}\n"
        "try: backend.VENDOR.load()\n"
        "except Problem as problem: print(problem.kind, problem.reason, problem.hint, sep='|')"
    )
    kind, reason, hint = python(code).split("|")
    assert kind == "extra"
    assert reason.endswith(" is not installed")
    assert extra in hint
    assert source in hint


def test_a_build_without_the_package_is_that_error_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, folder = add_graph(store), tmp_path / "engine"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(Problem, match="TensorRT is not installed") as caught:
        backend.build(graph, store.path(graph.key) / "model.onnx", T4, {}, folder)
    assert caught.value.kind == "extra"
    assert list(folder.iterdir()) == []


def test_no_driver_is_said_before_anything_is_asked_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petra_deploy.worker.backends._trt_vendor.cuda_devices", tuple)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(Problem, match="TensorRT runs on an NVIDIA GPU, and no driver or CUDA device is here") as caught:
        backend.open(tmp_path, {})
    assert of_kind(caught.value.kind).exit_code == 3


def test_it_serves_gpus_only() -> None:
    assert backend.obstacles(T4) == ()
    assert backend.obstacles(Target(name="c", runtime="tensorrt", device="cpu"))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot "
         "compile operation 'Gemm_8' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/a.cpp:20)",
         "TensorRT cannot compile 'Gemm_8' for Turing (SM75): FP32 GEMM is not supported"),
        ("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
         "kVERSION failed.Version tag does not match. In deserialize at /_src/b.cpp:12)",
         "TensorRT refuses the graph: Serialization (Serialization assertion stdVersionRead == kVERSION failed.Version "
         "tag does not match"),
    ],
)  # fmt: skip
def test_messages_lose_what_is_nvidias_own_business(message: str, said: str) -> None:
    assert sentence(message, backend.VENDOR) == said


@pytest.mark.parametrize(
    ("version", "admitted"), [("9.3.0", False), ("10.0.1", True), ("11.4.0.106", False), ("11.4.1.2", True)]
)
def test_a_version_is_held_against_the_targets_ranges(version: str, admitted: bool) -> None:
    assert admits(machine.resolve("orin-agx").runtime_versions["tensorrt"], version) is admitted
    assert admits((), version)


def test_a_refused_node_is_named_with_its_operator() -> None:
    said = refused_node(3, "", "Loop", 'Assertion failed: (n == 1) && "one output only, please"', backend.VENDOR)
    assert said == "TensorRT refuses node 3 (Loop): one output only, please"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("PETRA_CACHE_DIR", str(tmp_path / "users"))
    data = b"native code"
    provenance = Provenance(
        backend="tensorrt", version="10.16.1.11", device="Tesla T4", compute_capability="7.5", driver="580.65",
        model="0" * 64, plan="", inputs=("image",), outputs=("logits",),
    )  # fmt: skip
    return Plan(data, replace(provenance, plan=hashlib.sha256(data).hexdigest()))


def test_only_the_bytes_that_were_built_here_are_believed(plan: Plan, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    assert cache.vouched(ours) is None
    cache.vouch(ours, plan)
    assert cache.vouched(ours) == plan
    (theirs / "model.plan").write_bytes(plan.data)
    assert cache.vouched(theirs) == plan  # a copy of ours, wherever it lies
    (theirs / "model.plan").write_bytes(plan.data + b"!")
    (theirs / "plan.json").write_bytes((ours / "plan.json").read_bytes())
    assert cache.vouched(theirs) is None
    assert (cache.root("built").stat().st_mode & 0o077) == 0


@pytest.mark.parametrize(
    ("version", "device", "capability", "hardware", "newer", "fits"),
    [
        ("10.16.1.11", "Tesla T4", "7.5", "this", False, True),
        ("10.16.1.12", "Tesla T4", "7.5", "this", False, False),
        ("10.17.0.1", "Tesla T4", "7.5", "this", True, True),
        ("10.15.0.1", "Tesla T4", "7.5", "this", True, False),
        ("11.4.0.106", "Tesla T4", "7.5", "this", True, False),
        ("10.16.1.11", "Quadro RTX 8000", "7.5", "this", False, False),
        ("10.16.1.11", "Quadro RTX 8000", "7.5", "same_compute_capability", False, True),
        ("10.16.1.11", "NVIDIA L4", "8.9", "same_compute_capability", False, False),
        ("10.16.1.11", "NVIDIA L4", "8.9", "ampere_plus", False, False),  # it was built on Turing
    ],
)
def test_a_plan_serves_where_it_was_built_for(
    plan: Plan, version: str, device: str, capability: str, hardware: str, newer: bool, fits: bool
) -> None:
    assert plan.provenance.fits(version, device, capability, hardware, newer=newer) is fits


def test_from_ampere_on_a_plan_may_serve_what_came_later(plan: Plan) -> None:
    ampere = replace(plan.provenance, device="NVIDIA A10", compute_capability="8.6")
    assert ampere.fits("10.16.1.11", "NVIDIA B200", "10.0", "ampere_plus")
    assert not ampere.fits("10.16.1.11", "Tesla T4", "7.5", "ampere_plus")


def _append(path: Path) -> None:
    for _ in range(50):
        cache.update(path, lambda before: before + b"x")


def test_what_several_processes_add_to_a_timing_cache_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "device.timing"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_append, args=(path,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert path.read_bytes() == 150 * b"x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device.timing", "device.timing.lock"]


STEADY = (1.0,) * 9
FASTER = (0.9,) * 9


@pytest.mark.parametrize(
    ("tries", "index", "why"),
    [
        ([Try(STEADY, 0.0, 0.01)], 0, "none of 1 builds was steadily faster"),
        ([Try(STEADY, 0.0), Try(FASTER, 0.001)], 1, "1.111 times as fast"),
        ([Try(STEADY, 0.0), Try((0.8,) * 5 + (1.1,) * 4, 0.001)], 0, "none of 2"),  # not steadily
        ([Try(STEADY, 0.0), Try((0.9,) * 8 + (1.1,), 0.0)], 1, "1.111"),
        ([Try(STEADY, 0.0), Try((0.95,) * 9, 0.0), Try(FASTER, 0.0)], 2, "the best of 3"),
        ([Try(STEADY, 0.0, 0.01), Try(FASTER, 0.5, 0.5)], 0, "1 of 2 computed something else and are out"),
        ([Try(STEADY, 0.0, 0.01), Try(FASTER, float("inf"))], 0, "1 of 2"),
    ],
)
def test_the_build_that_is_steadily_faster_and_right_is_kept(tries: list[Try], index: int, why: str) -> None:
    won = choose(tries)
    assert won.index == index
    assert why in won.why


def test_where_no_build_is_right_none_ships() -> None:
    with pytest.raises(Problem, match=r"none of 2 builds computes what the graph says: the nearest is 0\.3") as caught:
        choose([Try(STEADY, 0.0, 0.3), Try(FASTER, 0.0, 0.4)])
    assert caught.value.kind == "mismatch"


class Timed:
    """An open engine whose speed and answer are given."""

    def __init__(self, ms: float, answer: float) -> None:
        self.ms, self.answer = ms, np.full((2, 3), answer, np.float32)

    def run(self, feeds: object) -> list[np.ndarray]:
        return [self.answer]

    def device_ms(self, feeds: object, calls: int) -> list[float]:
        return [self.ms] * calls


def test_every_build_is_timed_and_recorded() -> None:
    runners = [Timed(2.0, 1.0), Timed(1.0, 1.01), Timed(0.5, 7.0), Timed(0.4, float("nan"))]
    won, told = lottery.play(runners, {}, [np.ones((2, 3), np.float32)])
    assert won.index == 1
    assert [entry["ms"] for entry in told] == [2.0, 1.0, 0.5, 0.4]
    assert [entry["kept"] for entry in told] == [False, True, False, False]
    assert told[2]["from_processor"] == pytest.approx(6.0)
    assert told[3]["from_first"] == "not finite"


def test_a_difference_is_relative_to_the_largest_value_of_its_output() -> None:
    a = [np.array([100.0, -1.0]), np.array([1e-3])]
    assert difference(a, [np.array([101.0, -1.0]), np.array([1e-3])]) == pytest.approx(0.01)
    assert difference(a, [np.array([100.0, -1.0]), np.array([2e-3])]) == pytest.approx(1.0)
    assert difference(a, [np.array([100.0]), np.array([1e-3])]) == float("inf")


def test_the_processors_answer_is_onnx_runtimes_or_none(store: Store) -> None:
    good, bad = add_graph(store), add_graph(store, last="NoSuchOperator")
    spec = good.signature.inputs[0]
    feeds = {spec.name: lottery.example(spec, {"batch": 2})}
    found = lottery.by_processor(store.path(good.key) / "model.onnx", feeds)
    assert found is not None
    assert found[0].shape == (2, 4)
    assert lottery.by_processor(store.path(bad.key) / "model.onnx", feeds) is None


def test_example_whole_numbers_are_an_index_and_a_mask() -> None:
    ids = lottery.example(TensorSpec(name="ids", dtype="int64", shape=("batch", 12)), {"batch": 3})
    assert ids.shape == (3, 12)
    assert ids.dtype == np.int64
    assert set(np.unique(ids)) == {0, 1}
    assert ids[:, 0].all()
