"""Small ONNX networks and splits made by hand, for tests of what never imports torch.

graph = add_graph(store, widths=(16, 16))           # a core.outcome.Graph in the store
split = add_split(store, rows=40)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from petra_deploy.core.outcome import Graph
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature, Split, TensorSpec

CPU = Target(name="here", runtime="onnxruntime", device="cpu")
SIDE, CLASSES = 8, 4


def signature(batch: int | str = "batch") -> Signature:
    return Signature(
        inputs=(TensorSpec(name="image", dtype="float32", shape=(batch, 3, SIDE, SIDE)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(batch, CLASSES)),),
    )


def save_net(path: Path, widths: Sequence[int], *, batch: int | str = "batch", seed: int = 0, scale: float = 1.0,
             last: str | None = None) -> None:  # fmt: skip
    """Convolutions of `widths`, pooled, one linear layer; `last` is a further operator at the end."""
    generator = np.random.default_rng(seed)
    nodes, weights, before, channels = [], [], "image", 3
    for index, width in enumerate(widths):
        kernel = generator.standard_normal((width, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [before, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        before, channels = f"r{index}", width
    head = generator.standard_normal((channels, CLASSES)).astype(np.float32) * np.float32(scale)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [before], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["raw" if last else "logits"]))
    if last:
        nodes.append(helper.make_node(last, ["raw"], ["logits"]))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)


def add_graph(store: Store, widths: Sequence[int] = (8,), *, batch: int | str = "batch", seed: int = 0,
              scale: float = 1.0, last: str | None = None) -> Graph:  # fmt: skip
    key = store.add(
        lambda folder: save_net(folder / "model.onnx", widths, batch=batch, seed=seed, scale=scale, last=last)
    )
    return Graph(key=key, signature=signature(batch), bytes=(store.path(key) / "model.onnx").stat().st_size)


def add_split(store: Store, rows: int = 40, *, labelled: bool = True) -> Split:
    generator = np.random.default_rng(1)
    images = generator.standard_normal((rows, 3, SIDE, SIDE)).astype(np.float32)
    samples = Samples({"image": images}, generator.integers(0, CLASSES, rows) if labelled else None)
    return Split(key=store.add(samples.save), rows=rows, labelled=labelled)
