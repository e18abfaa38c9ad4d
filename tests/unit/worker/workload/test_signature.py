import numpy as np
import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.model.adapter import Adapter
from petra_deploy.worker.workload.inputs import find_ranges, parse, parse_all
from petra_deploy.worker.workload.signature import runner, settle
from petra_deploy.worker.workload.table import Table
from tests.unit.worker.workload.cases import NET, Net, images

torch.set_num_threads(1)
SPACE: dict[str, type[nn.Module]] = {}
exec(NET, SPACE)
IDS = np.random.default_rng(0).integers(0, 50, (40, 12))
TWO = {"ids": IDS, "mask": np.ones_like(IDS)}


def settled(module, arrays=None, *specs):
    return settle(module.eval(), Table(arrays, None, "data") if arrays else None, parse_all(specs))


def shapes(found):
    return [(s.name, s.dtype, s.shape) for s in found]


def test_one_input_of_any_name_is_given_by_position():
    called = settled(Net(), {"image": images()["x"]})
    assert (called.names, called.call) == (("image",), "args")
    assert shapes(called.signature.inputs) == [("image", "float32", ("batch", 1, 8, 8))]
    assert shapes(called.signature.outputs) == [("output", "float32", ("batch", 3))]


def test_inputs_follow_the_order_of_forward_and_outputs_have_the_names_of_the_dict():
    called = settled(SPACE["Two"](), {"mask": TWO["mask"], "ids": TWO["ids"].astype(np.int32)})
    assert (called.names, called.call) == (("ids", "mask"), "args")
    assert shapes(called.signature.outputs) == [
        ("logits", "float32", ("batch", 2)),
        ("hidden", "float32", ("batch", 12, 8)),
    ]


def test_several_arrays_for_one_parameter_are_a_dict():
    called = settled(SPACE["Dicts"](), TWO)
    assert called.call == "dict"


def test_arrays_that_skip_a_parameter_are_keywords():
    class Skips(nn.Module):
        def forward(self, a, b=None, c=None):
            assert b is None
            return a + c

    x = np.ones((4, 3), np.float32)
    assert settled(Skips(), {"a": x, "c": x}).call == "kwargs"


def test_arrays_that_forward_does_not_take_are_left_out_and_said():
    called = settled(Net(), {"x": images()["x"], "id": np.arange(60)})
    assert called.names == ("x",)
    assert "id" in called.notes[0]


@pytest.mark.parametrize(("kind", "module"), [("float32", Net()), ("int64", nn.Embedding(300, 4))])
def test_bytes_are_an_image_or_indices_by_what_runs(kind, module):
    shape = (8, 1, 8, 8) if kind == "float32" else (8, 5)
    called = settled(module, {"x": np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)})
    assert called.signature.inputs[0].dtype == kind


def test_dynamic_dimensions_are_followed_to_the_outputs():
    called = settled(SPACE["Two"](), None, "ids:int64[1,seq]", "mask:int64[1,seq]")
    assert shapes(called.signature.inputs)[0] == ("ids", "int64", ("batch", "seq"))
    assert shapes(called.signature.outputs) == [
        ("logits", "float32", ("batch", 2)),
        ("hidden", "float32", ("batch", "seq", 8)),
    ]


def test_a_dimension_that_cannot_change_is_fixed_and_said():
    called = settled(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), None, "x:float32[1,h,2]")
    assert called.signature.inputs[0].shape == ("batch", 32, 2)
    assert "h is fixed" in called.notes[0]


def test_a_tuple_of_outputs_is_numbered():
    called = settled(nn.LSTM(3, 4, batch_first=True), {"x": np.ones((5, 6, 3), np.float32)})
    assert shapes(called.signature.outputs) == [
        ("output_0", "float32", ("batch", 6, 4)),
        ("output_1_0", "float32", (1, "batch", 4)),
        ("output_1_1", "float32", (1, "batch", 4)),
    ]


def test_a_model_for_one_row_at_a_time_has_a_fixed_batch():
    class Single(nn.Module):
        def forward(self, x):
            return x.reshape(1, 12)

    called = settled(Single(), {"x": np.ones((5, 3, 4), np.float32)})
    assert not called.signature.dynamic_batch
    assert called.signature.inputs[0].shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("module", "arrays", "specs", "said"),
    [
        (
            SPACE["Raises"](),
            images(),
            (),
            r"forward raised ValueError: no such thing, called with x: float32\[2, 1, 8, 8\]",
        ),
        (SPACE["Two"](), {"words": IDS}, (), "takes ids, mask; there is no ids, mask among words"),
        (SPACE["Two"](), {"ids": IDS}, (), "there is no mask among ids"),
        (Net(), {"x": images()["x"][:, :, :2]}, (), "forward raised RuntimeError"),
        (Net(), None, (), "nothing tells what this model's inputs look like"),
        (Net(), {"x": images()["x"]}, ("x:float32[1,3,8,8]",), r"--input says x is \[1, 3, 8, 8\], the data says"),
        (nn.LSTM(3, 4), {"x": np.random.default_rng(0).random((5, 6, 3), np.float32)}, (), "rows of a batch influence"),
    ],
)
def test_what_cannot_be_called_is_one_clear_sentence(module, arrays, specs, said):
    arrays = {k: v for k, v in arrays.items() if k != "target"} if arrays else None
    with pytest.raises(Problem, match=said) as caught:
        settled(module, arrays, *specs)
    assert caught.value.kind in ("input", "unsupported")
    assert caught.value.hint


def test_a_model_that_draws_lots_is_reported():
    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.rand(len(x), 64)

    assert "other outputs each time" in settled(Noisy(), {"x": images()["x"]}).notes[0]


def test_an_output_without_rows_is_refused():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    with pytest.raises(Problem, match="its first dimension is not the rows"):
        settled(Mean(), {"x": images()["x"]})


def test_the_vocabulary_of_an_embedding_is_found_by_trying():
    called = settled(SPACE["Two"](), None, "ids:int64[1,6]", "mask:int64[1,6]")
    module = SPACE["Two"]().eval()
    assert find_ranges(called.signature.inputs, runner(Adapter(module, called.names, called.call))) == {"ids": 50}


@pytest.mark.parametrize(
    ("text", "name", "dtype", "shape"),
    [
        ("image:float32[1,3,224,224]", "image", "float32", (1, 3, 224, 224)),
        ("ids:long[batch,seq]", "ids", "int64", ("batch", "seq")),
        ("[1,8]", None, None, (1, 8)),
        ("x:half", "x", "float16", None),
    ],
)
def test_inputs_are_parsed(text, name, dtype, shape):
    spec = parse(text)
    assert (spec.name, spec.dtype, spec.shape) == (name, dtype, shape)


@pytest.mark.parametrize("text", ["", "x:complex[1]", "x[1,0]", "x:float32[1,", "x[a b]", "x:float32[]"])
def test_inputs_that_cannot_be_read_say_how_to_write_them(text):
    with pytest.raises(Problem, match="--input") as caught:
        parse(text)
    assert caught.value.hint
