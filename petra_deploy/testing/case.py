"""A small model and how to feed it: what a test of a technique, of an export or of a job needs.

case = CASES["mlp"]()                            # petra_deploy.testing.families; seeded
model = case.adapter()                           # as a technique gets it: eval mode
outputs = model(*case.tensors(rows=4))
applied = prune.apply(model, options, case.tools(tmp_path))
graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy()))

Techniques train where the variable PETRA_TEST_DEVICE says: `PETRA_TEST_DEVICE=cuda pytest tests/unit/worker`; the CPU
without it.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from petra_deploy.core.extension import Tools
from petra_deploy.core.files import write_json
from petra_deploy.core.plan import Layout
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import BATCH, MetricSpec, Signature, Split, TensorSpec, Workload
from petra_deploy.worker.jobs._techniques import finders
from petra_deploy.worker.model.adapter import Adapter, Call, flatten
from petra_deploy.worker.model.layout import layout
from petra_deploy.worker.workload.source import Source

DEVICE = os.environ.get("PETRA_TEST_DEVICE", "cpu")


@dataclass(frozen=True)
class Case:
    """`shapes` leave out the rows; an integer input has its `ranges`: numbers from 0 up to below that."""

    name: str
    module: nn.Module
    shapes: dict[str, tuple[int, ...]]
    ranges: dict[str, int]
    call: Call = "args"

    def adapter(self) -> Adapter:
        return Adapter(self.module, tuple(self.shapes), self.call).eval()

    def tensors(self, rows: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        made = {
            name: torch.randint(self.ranges[name], (rows, *shape), generator=generator)
            if name in self.ranges
            else torch.randn((rows, *shape), generator=generator)
            for name, shape in self.shapes.items()
        }
        if "mask" in made:
            made["mask"][:, 0] = 1  # attention over no token at all is NaN
        return tuple(made.values())

    def samples(self, rows: int = 16, seed: int = 0, target: bool = True) -> Samples:
        """Random inputs; the target is what the model itself says of them (its first output's argmax)."""
        tensors = self.tensors(rows, seed)
        with torch.no_grad():
            said = self.adapter()(*tensors)[0].flatten(1).argmax(1).numpy()
        inputs = {name: tensor.numpy() for name, tensor in zip(self.shapes, tensors, strict=True)}
        return Samples(inputs, said if target else None)

    def tools(self, scratch: Path, rows: int = 16, seed: int = 0, **changes: Any) -> Tools:
        """Tools for a technique: calibration and training rows of `samples`, the model as its own teacher."""
        train = self.samples(rows, seed + 1)

        def outputs() -> list[np.ndarray]:
            with torch.no_grad():
                return [t.numpy() for t in self.adapter()(*(torch.from_numpy(v) for v in train.inputs.values()))]

        fields: dict[str, Any] = {
            "calibration": self.samples(rows, seed), "train": train, "teacher": lambda: copy.deepcopy(self.adapter()),
            "teacher_outputs": outputs, "signature": self.signature(), "metric": MetricSpec(name="accuracy"),
            "seed": seed, "scratch": scratch, "log": lambda _: None, "device": DEVICE,
        }  # fmt: skip
        return Tools(**{**fields, **changes})

    def workload(self, store: Store, rows: int = 32, trainable: bool = True) -> Workload:
        """As Load would answer: model and splits in the store, the model cloudpickled."""

        def write(folder: Path) -> None:
            (folder / "model.pkl").write_bytes(cloudpickle.dumps(self.module))
            source = Source(kind="cloudpickle", file="model.pkl", names=tuple(self.shapes), call=self.call)
            write_json(folder / "source.json", source)

        def split(seed: int) -> Split:
            return Split(key=store.add(self.samples(rows, seed).save), rows=rows, labelled=True)

        return Workload(
            model=store.add(write), form="module", sha256="0" * 64, name=self.name, signature=self.signature(),
            metric=MetricSpec(name="accuracy"), train=split(1) if trainable else None, calibration=split(2),
            selection=split(3),
        )  # fmt: skip

    def layout(self) -> Layout:
        return layout(self.adapter(), self.tensors(4), "module", self.signature(), finders())

    def signature(self) -> Signature:
        tensors = self.tensors(2)
        with torch.no_grad():
            outputs = flatten(self.module.eval()(*_as_called(self, tensors)))
        return Signature(
            inputs=tuple(_spec(name, t) for name, t in zip(self.shapes, tensors, strict=True)),
            outputs=tuple(_spec(name, t) for name, t in outputs),
        )


def case(
    name: str, make: Callable[[], nn.Module], call: Call = "args", ranges: dict[str, int] | None = None,
    **shapes: tuple[int, ...],
) -> Callable[[], Case]:  # fmt: skip
    """A maker of a case, seeded: the same weights each time, and BatchNorm statistics as after training."""

    def seeded() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make().eval()
            for m in module.modules():  # statistics of a trained network are not 0 and 1
                if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.normal_(m.get_buffer("running_mean"), 0, 0.2)
                    nn.init.uniform_(m.get_buffer("running_var"), 0.5, 1.5)
                    nn.init.uniform_(m.weight, 0.5, 1.5)
                    nn.init.normal_(m.bias, 0, 0.2)
        return Case(name, module, shapes, ranges or {}, call)

    return seeded


def _as_called(case: Case, tensors: tuple[Tensor, ...]) -> tuple[object, ...]:
    return (dict(zip(case.shapes, tensors, strict=True)),) if case.call == "dict" else tensors


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *tensor.shape[1:]))


def same(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> bool:
    """Equal; where techniques train on a GPU, whose sums have no order of their own, to a thousandth of the largest."""
    ours, theirs = np.asarray(first), np.asarray(second)
    if DEVICE == "cpu":
        return np.array_equal(ours, theirs)
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=1e-3 * float(np.abs(ours).max(initial=0.0))))
