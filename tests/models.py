"""Small real models that all tests share, one a family, with inputs that fit them.

    case = CASES["resnet"]()                 # seeded: the same weights each time
    model = case.adapter()                   # petra_deploy's Adapter, eval mode
    outputs = model(*case.tensors(rows=4))
    case.signature()                         # with a dynamic batch
    prune.apply(model, options, case.tools(tmp_path))

`Case` is petra_deploy.testing's. The architectures themselves are in `petra_deploy/testing/families.py` and
`tests/architectures.py`, and can be imported from here too.
"""

from collections.abc import Callable

from petra_deploy.testing.case import Case, case
from petra_deploy.testing.families import Cnn, Mlp, Recurrent, TorchEncoder
from tests.architectures import (
    Block,
    DictModel,
    Events,
    HandEncoder,
    Inception,
    InceptionBlock,
    Inverted,
    MobileNet,
    Residual,
    ResNet,
    Shared,
    TwoInputs,
)

__all__ = [
    "CASES", "Block", "Case", "Cnn", "DictModel", "Events", "HandEncoder", "Inception", "InceptionBlock",
    "Inverted", "Mlp", "MobileNet", "Recurrent", "ResNet", "Residual", "Shared", "TorchEncoder", "TwoInputs",
]  # fmt: skip

_TEXT = {"ids": (12,), "mask": (12,)}
CASES: dict[str, Callable[[], Case]] = {
    "cnn": case("cnn", Cnn, image=(1, 8, 8)),
    "resnet": case("resnet", ResNet, image=(3, 16, 16)),
    "mobilenet": case("mobilenet", MobileNet, image=(1, 16, 16)),
    "torch_encoder": case("torch_encoder", TorchEncoder, ranges={"ids": 100, "mask": 2}, **_TEXT),
    "hand_encoder": case("hand_encoder", HandEncoder, ranges={"ids": 100, "mask": 2}, **_TEXT),
    "lstm": case("lstm", lambda: Recurrent("LSTM", layers=2), x=(10, 8)),
    "gru_mean": case("gru_mean", lambda: Recurrent("GRU", pool="mean", norm=True), x=(10, 8)),
    "gru_both_ways": case("gru_both_ways", lambda: Recurrent("GRU", layers=2, bidirectional=True), x=(10, 8)),
    "lstm_hidden": case(
        "lstm_hidden", lambda: Recurrent("LSTM", bidirectional=True, pool="hidden", layers=2), x=(10, 8)
    ),
    "rnn": case("rnn", lambda: Recurrent("RNN"), x=(10, 8)),
    "events": case("events", Events, ranges={"code": 50}, code=(12,), amount=(12,)),
    "inception": case("inception", Inception, series=(1, 48)),
    "mlp": case("mlp", Mlp, x=(64,)),
    "two_inputs": case("two_inputs", TwoInputs, image=(1, 8, 8), numbers=(6,)),
    "dicts": case("dicts", DictModel, "dict", left=(5,), right=(3,)),
    "shared": case("shared", Shared, x=(8,)),
}
