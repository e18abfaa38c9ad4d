"""Small real models that all tests share, one a family, with inputs that fit them.

    case = CASES["resnet"]()                 # seeded: the same weights each time
    model = case.adapter()                   # petra_deploy's Adapter, eval mode
    outputs = model(*case.tensors(rows=4))
    case.signature()                         # with a dynamic batch
    prune.apply(model, options, case.tools(tmp_path))

The architectures themselves are in `tests/architectures.py` and can be imported from here too.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from petra_deploy.worker.model.adapter import Adapter, Call, flatten
from petra_deploy.worker.model.layout import layout
from petra_deploy.worker.workload.source import Source
from tests.architectures import (
    Block,
    Cnn,
    DictModel,
    Events,
    HandEncoder,
    Inception,
    InceptionBlock,
    Inverted,
    Mlp,
    MobileNet,
    Recurrent,
    Residual,
    ResNet,
    Shared,
    TorchEncoder,
    TwoInputs,
)

__all__ = [
    "CASES", "Block", "Case", "Cnn", "DictModel", "Events", "HandEncoder", "Inception", "InceptionBlock",
    "Inverted", "Mlp", "MobileNet", "Recurrent", "ResNet", "Residual", "Shared", "TorchEncoder", "TwoInputs",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how to feed it. `shapes` leave out the rows; an integer input has its `ranges`."""

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

    def tools(self, scratch: Path, rows: int = 16, seed: int = 0, **changes: object) -> Tools:
        """Tools for a technique: calibration and training rows of `samples`, the model as its own teacher."""
        train = self.samples(rows, seed + 1)

        def outputs() -> list[np.ndarray]:
            with torch.no_grad():
                return [t.numpy() for t in self.adapter()(*(torch.from_numpy(v) for v in train.inputs.values()))]

        fields = {
            "calibration": self.samples(rows, seed), "train": train, "teacher": lambda: copy.deepcopy(self.adapter()),
            "teacher_outputs": outputs, "signature": self.signature(), "metric": MetricSpec(name="accuracy"),
            "seed": seed, "scratch": scratch, "log": lambda _: None,
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
        return layout(self.adapter(), self.tensors(4), "module", self.signature())

    def signature(self) -> Signature:
        tensors = self.tensors(2)
        with torch.no_grad():
            outputs = flatten(self.module.eval()(*_as_called(self, tensors)))
        return Signature(
            inputs=tuple(_spec(name, t) for name, t in zip(self.shapes, tensors, strict=True)),
            outputs=tuple(_spec(name, t) for name, t in outputs),
        )


def _as_called(case: Case, tensors: tuple[Tensor, ...]) -> tuple[object, ...]:
    return (dict(zip(case.shapes, tensors, strict=True)),) if case.call == "dict" else tensors


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=(BATCH, *tensor.shape[1:]))


def _case(name: str, make: Callable[[], nn.Module], call: Call = "args", ranges: dict[str, int] | None = None,
          **shapes: tuple[int, ...]) -> Callable[[], Case]:  # fmt: skip
    def seeded() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make().eval()
            for m in module.modules():  # statistics of a trained network are not 0 and 1
                if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.normal_(m.running_mean, 0, 0.2)
                    nn.init.uniform_(m.running_var, 0.5, 1.5)
                    nn.init.uniform_(m.weight, 0.5, 1.5)
                    nn.init.normal_(m.bias, 0, 0.2)
        return Case(name, module, shapes, ranges or {}, call)

    return seeded


_TEXT = {"ids": (12,), "mask": (12,)}
CASES: dict[str, Callable[[], Case]] = {
    "cnn": _case("cnn", Cnn, image=(1, 8, 8)),
    "resnet": _case("resnet", ResNet, image=(3, 16, 16)),
    "mobilenet": _case("mobilenet", MobileNet, image=(1, 16, 16)),
    "torch_encoder": _case("torch_encoder", TorchEncoder, ranges={"ids": 100, "mask": 2}, **_TEXT),
    "hand_encoder": _case("hand_encoder", HandEncoder, ranges={"ids": 100, "mask": 2}, **_TEXT),
    "lstm": _case("lstm", lambda: Recurrent("LSTM", layers=2), x=(10, 8)),
    "gru_mean": _case("gru_mean", lambda: Recurrent("GRU", pool="mean", norm=True), x=(10, 8)),
    "gru_both_ways": _case("gru_both_ways", lambda: Recurrent("GRU", layers=2, bidirectional=True), x=(10, 8)),
    "lstm_hidden": _case(
        "lstm_hidden", lambda: Recurrent("LSTM", bidirectional=True, pool="hidden", layers=2), x=(10, 8)
    ),
    "rnn": _case("rnn", lambda: Recurrent("RNN"), x=(10, 8)),
    "events": _case("events", Events, ranges={"code": 50}, code=(12,), amount=(12,)),
    "inception": _case("inception", Inception, series=(1, 48)),
    "mlp": _case("mlp", Mlp, x=(64,)),
    "two_inputs": _case("two_inputs", TwoInputs, image=(1, 8, 8), numbers=(6,)),
    "dicts": _case("dicts", DictModel, "dict", left=(5,), right=(3,)),
    "shared": _case("shared", Shared, x=(8,)),
}
