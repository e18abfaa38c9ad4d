"""Whole models: exported by both of torch's exporters, lifted, and then what techniques find and do in them."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from petra_deploy.core.files import read_toml, shipped, write_json
from petra_deploy.core.job import Inspect, Probe, Transform
from petra_deploy.core.plan import Layout
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Workload
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.jobs._techniques import finders
from petra_deploy.worker.model import adapter
from petra_deploy.worker.model.layout import layout
from petra_deploy.worker.model.lift import check, lift
from petra_deploy.worker.model.lift.names import Paths, owner, scope
from petra_deploy.worker.model.lift.reshape import Size, align, plan
from petra_deploy.worker.workload.opened import open_module
from petra_deploy.worker.workload.source import Source
from tests.models import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def target() -> Target:
    return read_toml(shipped("targets") / "cpu.toml", Target)


def exported(case: Case, path: Path, newer: bool) -> Path:
    """As the user would export the module itself."""
    outputs = [spec.name for spec in case.signature().outputs]
    inputs, example, module = list(case.shapes), case.tensors(3), case.module.eval()
    if newer:
        program = torch.onnx.export(
            module, example, dynamo=True, dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
            input_names=inputs, output_names=outputs, verbose=False, external_data=False,
        )  # fmt: skip
        assert program is not None
        program.save(str(path))
    else:
        axes = {name: {0: "batch"} for name in (*inputs, *outputs)}
        torch.onnx.export(module, example, str(path), dynamo=False, input_names=inputs, output_names=outputs,
                          dynamic_axes=axes, opset_version=17)  # fmt: skip
    return path


def groups(found: Layout) -> dict[str, set[str]]:
    return {kind: {g.name for g in found.of_kind(kind)} for kind in ("channels", "units", "block")}


@pytest.mark.parametrize(("name", "newer"), [
    ("cnn", True), ("hand_encoder", True), ("gru_both_ways", True), ("shared", True), ("torch_encoder", False),
    ("lstm_hidden", False), ("inception", False), ("rnn", False), ("two_inputs", False),
])  # fmt: skip
def test_a_lifted_model_has_the_groups_of_the_module(name: str, newer: bool, tmp_path: Path) -> None:
    case = CASES[name]()
    path, signature, rows = exported(case, tmp_path / "model.onnx", newer), case.signature(), case.samples()
    module = lift(path, signature, rows)
    check(module, path, signature, rows)
    with torch.no_grad():
        for ours, own in zip(module(*case.tensors(5)), case.adapter()(*case.tensors(5)), strict=True):
            assert torch.allclose(ours, own, atol=1e-4)
    found, wanted = groups(layout(module, case.tensors(4), "onnx", signature, finders())), groups(case.layout())
    modules = dict(case.adapter().inner.named_modules())
    wanted["block"] -= {n for n in wanted["block"] if isinstance(modules[n], nn.Linear)}  # a graph has no nn.Sequential
    for kind in wanted:
        assert wanted[kind] <= found[kind], kind


class Nameless(nn.Module):
    """Two residual branches, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        x = x + torch.relu(self.a(x))
        return self.head(x + torch.tanh(self.b(x)))


def test_without_names_blocks_are_found_between_a_value_and_its_sum(tmp_path: Path) -> None:
    case = Case("nameless", Nameless().eval(), {"x": (6,)}, {})
    path = exported(case, tmp_path / "model.onnx", newer=False)
    model = onnx.load(path)
    renamed = {t.name: f"w{i}" for i, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.save(model, path)
    module = lift(path, case.signature(), case.samples())
    check(module, path, case.signature(), case.samples())
    found = layout(module, case.tensors(4), "onnx", case.signature(), finders())
    assert [group.name for group in found.of_kind("block")] == ["residual.0", "residual.1"]
    assert {type(m).__name__ for _, m in adapter.submodules(module)} >= {"Linear", "Tape"}


def test_a_weight_that_two_layers_share_stays_one(tmp_path: Path) -> None:
    case = CASES["shared"]()
    path = exported(case, tmp_path / "model.onnx", newer=False)
    module = lift(path, case.signature(), case.samples())
    own = sum(p.numel() for p in case.module.parameters())
    assert sum(p.numel() for p in module.parameters()) <= own


@pytest.mark.parametrize(("name", "path"), [
    ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"), ("/stages/stages.0/stages.0.1/Add", "stages.0.1"),
    ("/encoder/layer.0/attention/self/query/MatMul", "encoder.layer.0.attention.self.query"), ("Conv_12", ""), ("", ""),
])  # fmt: skip
def test_node_names_of_the_older_exporter_are_paths(name: str, path: str) -> None:
    assert scope(name, {}) == path


def test_parameter_names_tell_the_layer_that_owns_them() -> None:
    assert owner("blocks.0.fc1.weight") == "blocks.0.fc1"
    assert owner("onnx::Conv_191") == owner("val_9") == owner("blocks.0.gain_in") == ""


def test_no_path_is_given_twice_nor_inside_another() -> None:
    paths = Paths()
    paths.reserve("attn")
    assert paths.take("linear", "attn") == "attn.linear"
    assert paths.take("linear", "attn") == "attn.linear_2"
    assert paths.take("linear", "", "rnn") == "rnn"
    assert paths.take("linear", "rnn.inside") == "rnn_inside"
    assert paths.take("conv2d") == "conv2d"


def test_sizes_of_a_reshape_follow_from_the_input() -> None:
    assert align((2, 32, 2, 2), (2, 128)) == [((0,), (0,)), ((1, 2, 3), (1,))]
    assert align((2, 7), (3, 5)) is None
    flat = plan([(2, 32, 2, 2), (3, 32, 2, 2)], [(2, 128), (3, 128)], [-1, 128])
    assert flat == (None, Size((1, 2, 3)))
    assert flat[1] is not None
    assert flat[1]((5, 8, 2, 2)) == 32
    heads = plan([(2, 5, 12), (3, 5, 12)], [(2, 5, 3, 4), (3, 5, 3, 4)], [None, 5, 3, 4])
    assert heads == (None, Size((1,)), Size((), number=3), Size((2,), 3))


def as_graph(case: Case, run: Inline, tmp_path: Path, newer: bool = True) -> Workload:
    """As Load answers for an ONNX file that can be lifted."""
    path = exported(case, tmp_path / "source.onnx", newer)

    def write(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(path.read_bytes())
        write_json(folder / "source.json", Source(kind="onnx", file="model.onnx", names=tuple(case.shapes)))

    return replace(case.workload(run.store), form="onnx", model=run.store.add(write), lifted=True)


def test_a_graph_is_inspected_probed_and_shrunk_like_a_module(tmp_path: Path, target: Target) -> None:
    run, case = Inline(Store(tmp_path / "store")), CASES["cnn"]()
    workload = as_graph(case, run, tmp_path)
    found = run.must(Inspect(workload=workload, target=target))
    assert {"prune", "drop_blocks", "recover", "quantize_inc", "quantize_ort"} <= {o.technique for o in found.offers}
    assert found.layout.operators["Conv2d"] == 3
    assert "Conv" not in found.layout.operators
    probed = run.must(Probe(workload=workload, layout=found.layout))
    assert set(probed.sensitivity) == {f"{g.kind}/{g.name}" for g in found.layout.groups}
    steps = (
        Step(technique="prune", options={"ratios": {"features.0.0": 0.5}}),
        Step(technique="recover", options={"epochs": 1}),
        Step(technique="quantize_ort", options={}),
    )
    small = run.must(Transform(workload=workload, strategy=Strategy(steps=steps[:2])))
    own = run.must(Transform(workload=workload, strategy=Strategy()))
    both = run.must(Transform(workload=workload, strategy=Strategy(steps=steps)))
    assert both.bytes < small.bytes < own.bytes
    assert set(own.facts["parity"]) == {"source"}  # type: ignore[call-overload]
    nodes = [n.op_type for n in onnx.load(run.store.path(own.key) / "model.onnx").graph.node]
    assert nodes == [n.op_type for n in onnx.load(tmp_path / "source.onnx").graph.node]


def test_what_cannot_be_lifted_says_why_to_every_module_technique(tmp_path: Path, target: Target) -> None:
    run, case = Inline(Store(tmp_path / "store")), CASES["mlp"]()
    workload = replace(as_graph(case, run, tmp_path), lifted=False, unlifted="operator Det cannot be lifted")
    found = run.must(Inspect(workload=workload, target=target))
    assert "operator Det cannot be lifted" in found.unavailable["prune"]
    failed = run(Transform(workload=workload, strategy=Strategy(steps=(Step(technique="recover", options={}),))))
    assert getattr(failed, "kind", None) == "unsupported"
    assert "operator Det" in failed.reason  # type: ignore[union-attr]


def test_opening_twice_gives_equal_modules_of_their_own(tmp_path: Path) -> None:
    run, case = Inline(Store(tmp_path / "store")), CASES["mlp"]()
    workload = as_graph(case, run, tmp_path)
    first, second = open_module(run.store, workload), open_module(run.store, workload)
    for (name, a), (other, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
