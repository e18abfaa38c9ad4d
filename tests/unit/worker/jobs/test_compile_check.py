"""What the TensorRT-RTX compiler, which needs no GPU, says to the graph that ships."""

import onnx
import pytest
from onnx import helper

from petra_deploy.core.job import Build, CompileCheck
from petra_deploy.core.outcome import Compiled, Engine, Failed
from petra_deploy.core.store import Store
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.backends import tensorrt_rtx
from tests.unit.worker.nets import CPU, add_graph

pytest.importorskip("tensorrt_rtx", reason="its wheels are for Linux and Windows on x86-64")


def engine(store: Store) -> Engine:
    return Inline(store).must(Build(graph=add_graph(store, (16,)), target=CPU))


def test_what_compiles_has_the_compilers_version_and_no_sentence(store: Store) -> None:
    found = Inline(store).must(CompileCheck(engine=engine(store), capability="8.9"))
    assert found == Compiled(compiler=f"TensorRT-RTX {tensorrt_rtx.describe()['tensorrt_rtx']}")


def test_what_is_refused_has_a_sentence_a_node(store: Store) -> None:
    built = engine(store)
    path = store.path(built.key) / "model.onnx"
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("NoSuchOperator", [model.graph.output[0].name], ["odd"]))

    def odd(folder) -> None:  # type: ignore[no-untyped-def]
        onnx.save(model, folder / "model.onnx")

    found = Inline(store).must(
        CompileCheck(engine=type(built)(**{**vars(built), "key": store.add(odd)}), capability="8.6")
    )
    (said,) = found.refused
    assert said.endswith("(NoSuchOperator): it has no such operator")


@pytest.mark.parametrize(("capability", "why"), [("7.5", "no FP32 matrix products"), ("9.0", "it knows 7.5, 8.0")])
def test_what_it_cannot_judge_is_a_failure_with_its_reason(store: Store, capability: str, why: str) -> None:
    done = Inline(store)(CompileCheck(engine=engine(store), capability=capability))
    assert isinstance(done, Failed)
    assert done.kind == "unsupported"
    assert why in done.reason
