"""A shipment of a real engine: a tiny ONNX classifier, built by the onnxruntime backend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.outcome import Engine, Figure, Goal, Graph, Latency, Measurement, Outcome, Score
from petra_deploy.core.plan import Group, Layout
from petra_deploy.core.registry import find
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import FULL, Step, Strategy
from petra_deploy.core.target import Target
from petra_deploy.core.workload import MetricSpec, Signature, Split, TensorSpec, Workload
from petra_deploy.driver.bundle.write import Shipment

SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8)),
            TensorSpec(name="kind", dtype="int64", shape=("batch",))),
    outputs=(TensorSpec(name="output", dtype="float32", shape=("batch", 1, 3)),),
)  # fmt: skip
TARGET = Target(name="cpu", runtime="onnxruntime", device="cpu", instructions=("avx2",))
LAYOUT = Layout(form="module", signature=SIGNATURE, parameters=24, bytes=96, operators={"Linear": 1},
                groups=(Group(name="body", kind="channels", width=3, parameters=24, macs=24),))  # fmt: skip


def write_model(path: Path, padding: int) -> None:
    """image @ weight + kind; `padding` unused weights make the file larger."""
    weight = numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(8, 3), "weight")
    unused = numpy_helper.from_array(np.zeros(padding, np.float32), "unused")
    shape = numpy_helper.from_array(np.array([-1, 1, 1]), "shape")
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["product"]),
        helper.make_node("Cast", ["kind"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["number", "shape"], ["column"]),
        helper.make_node("Add", ["product", "column"], ["output"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8]),
              helper.make_tensor_value_info("kind", TensorProto.INT64, ["batch"])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 3])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [weight, unused, shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def engine(
    store: Store, scratch: Path, padding: int, settings: dict[str, object], runtime: str = "onnxruntime"
) -> Engine:
    path = scratch / f"{padding}.onnx"
    write_model(path, padding)
    graph = Graph(key="graph", signature=SIGNATURE, bytes=path.stat().st_size)
    built: list[Engine] = []
    backend, target = find("backend", runtime), replace(TARGET, runtime=runtime)
    key = store.add(lambda folder: built.append(backend.build(graph, path, target, settings, folder)))
    return replace(built[0], key=key)


def ms(value: float) -> Figure:
    return Figure(value=value, unit="ms", low=value * 0.9, high=value * 1.1, n=600)


def latency(batch: int, value: float) -> Latency:
    return Latency(
        batch=batch, p50=ms(value), p90=ms(value * 1.2), first=ms(value * 2),
        p99=Figure(value=None, unit="ms", n=100, note="needs 459"),
        throughput=Figure(value=1000 * batch / value, unit="1/s"),
    )  # fmt: skip


def make_shipment(store: Store, scratch: Path, runtime: str = "onnxruntime") -> Shipment:
    """The candidate is served by `runtime`, the baseline by onnxruntime."""
    rows = Samples({"image": np.linspace(-1, 2, 80, dtype=np.float32).reshape(10, 1, 8), "kind": np.arange(10) % 4})
    split = Split(key=store.add(rows.save), rows=10, labelled=True)
    workload = Workload(
        model="m", form="module", sha256="ab" * 32, name="my net/1", signature=SIGNATURE,
        metric=MetricSpec(name="accuracy"), train=split, calibration=split, selection=split, notes=("few rows",),
    )  # fmt: skip
    measurement = Measurement(
        candidate=(latency(1, 0.5), latency(16, 2.0)), baseline=(latency(1, 4.0), latency(16, 30.0)),
        speedups=(Figure(value=8.0, unit="ratio", low=7.8, high=8.3, n=9), Figure(value=15.0, unit="ratio", n=9)),
        load=ms(3.0), peak_memory=Figure(value=5e7, unit="bytes"), rounds="r", machine={"cpu": "test"},
        warnings=("the machine was busy",),
    )  # fmt: skip
    score = Score(metric="accuracy", split="test", n=360, value=0.97, outputs="o", baseline=0.98,
                  drop=Figure(value=1.0, unit="points", low=0.2, high=1.9, n=360))  # fmt: skip
    strategy = Strategy(steps=(Step(technique="prune", options={"ratios": {"body": 0.5}}),
                               Step(technique="quantize_inc")))  # fmt: skip
    settings = {"fusions": "no_skip_layer_norm"} if runtime == "onnxruntime" else {}
    small = engine(store, scratch, 0, {"threads": 1, **settings}, runtime)
    large = engine(store, scratch, 5000, {"threads": 1})
    return Shipment(
        chosen=Outcome(strategy=strategy, fidelity=FULL, engine=small, measurement=measurement, score=score),
        baseline=Outcome(strategy=Strategy(), fidelity=FULL, engine=large, measurement=measurement),
        workload=workload, target=replace(TARGET, runtime=runtime), layout=LAYOUT, goal=Goal(), seed=7, considered=12,
        test=score,
    )  # fmt: skip
