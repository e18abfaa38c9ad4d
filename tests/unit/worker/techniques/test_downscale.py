"""downscale: the model answers to a smaller map as it would to that map, and its inputs stay the user's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Transform
from petra_deploy.core.store import Store
from petra_deploy.core.strategy import Step, Strategy
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.model import export, parity
from petra_deploy.worker.techniques import downscale, drop_blocks, prune, shrink_rnn
from tests.models import CASES, Case


def offered(case: Case) -> dict[str, int]:
    return {g.name: g.width for g in case.layout().of_kind("resolution")}


def applied(case: Case, tmp_path: Path, ratios: dict[str, float], **options: Any) -> Any:
    return downscale.apply(case.adapter(), downscale.Options(ratios=ratios, **options), case.tools(tmp_path))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize(("name", "given"), [("resnet", "image"), ("inception", "series"), ("gru_mean", "x")])
def test_the_answer_is_that_to_the_averaged_input(name: str, given: str, factor: int, tmp_path: Path) -> None:
    case = CASES[name]()
    result = applied(case, tmp_path, {given: 1 - 1 / factor})
    (x,) = case.tensors(3)
    if name == "gru_mean":
        y = nn.functional.avg_pool1d(x.transpose(1, 2), factor, ceil_mode=True).transpose(1, 2)
    elif name == "inception":
        y = nn.functional.avg_pool1d(x, factor, ceil_mode=True)
    else:
        y = nn.functional.avg_pool2d(x, factor, ceil_mode=True)
    torch.testing.assert_close(result.model(x)[0], case.module(y), atol=1e-5, rtol=1e-4)
    assert result.facts["factors"] == {given: factor}


def test_a_longer_stride_takes_every_second_position_of_the_first_convolution(tmp_path: Path) -> None:
    case = CASES["resnet"]()
    small = applied(case, tmp_path, {"image": 0.5}, where="stride").model
    (x,) = case.tensors(3)
    first = torch.relu(case.module.bn1(case.module.conv1(x)))[:, :, ::2, ::2]
    torch.testing.assert_close(
        small(x)[0], case.module.fc(case.module.stages(first).mean((2, 3))), atol=1e-5, rtol=1e-4
    )


def test_a_recurrent_layer_is_called_with_the_mean_of_every_three_steps(tmp_path: Path) -> None:
    case = CASES["events"]()
    small = applied(case, tmp_path, {"rnn": 2 / 3}).model
    code, amount = case.tensors(3)
    x = torch.cat([case.module.embed(code), amount.unsqueeze(-1)], 2)
    y, _ = case.module.rnn(x.unflatten(1, (4, 3)).mean(2))
    torch.testing.assert_close(small(code, amount)[0], case.module.head(y.mean(1)), atol=1e-6, rtol=1e-4)


def test_a_stack_of_blocks_works_on_pairs_and_gives_back_all_steps(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    small = applied(case, tmp_path, {"blocks": 0.5}).model
    ids, mask = case.tensors(3)
    m = case.module
    x = (m.embed(ids) + m.position(torch.arange(12))).unflatten(1, (6, 2)).mean(2)
    for block in m.blocks:
        x = block(x, mask[:, ::2])
    torch.testing.assert_close(small(ids, mask)[0], m.head(m.norm(x)[:, 0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn", "inception", "torch_encoder"])
def test_the_artifact_is_its_module(name: str, tmp_path: Path) -> None:
    case, store = CASES[name](), Store(tmp_path)
    step = Step(technique="downscale", options={"ratios": dict.fromkeys(offered(case), 0.75), "most": offered(case)})
    graph = Inline(store).must(Transform(workload=case.workload(store), strategy=Strategy(steps=(step,))))
    assert graph.facts["downscale"]["factors"]
    assert graph.facts["parity"]["module"]
    feeds = {n: v[:3] for n, v in case.samples(3).inputs.items()}
    assert len(parity.run_file(store.path(graph.key) / "model.onnx", [feeds])[0][0]) == 3


@pytest.mark.parametrize("name", ["hand_encoder", "events"])
def test_any_length_goes_through_the_artifact(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    signature = case.signature()
    free = tuple(replace(spec, shape=("batch", "length")) for spec in signature.inputs)
    signature = replace(signature, inputs=free)
    tools = case.tools(tmp_path, signature=signature)
    layer = "blocks" if name == "hand_encoder" else "rnn"
    small = downscale.apply(case.adapter(), downscale.Options(ratios={layer: 0.5}), tools).model
    path = tmp_path / "model.onnx"
    export.export(small, signature, export.example_of(tools.calibration, signature), path)
    for length in (7, 12, 15):
        longer = replace(case, shapes=dict.fromkeys(case.shapes, (length,)))
        tensors = longer.tensors(3)
        batch = {n: t.numpy() for n, t in zip(case.shapes, tensors, strict=True)}
        with torch.no_grad():
            wanted = [t.numpy() for t in small(*tensors)]
        parity.compare([wanted], parity.run_file(path, [batch]), signature, parity.EXACT)


class Segmenter(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Tagger(nn.Module):
    """A class for every token, by an encoder that is given all steps back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.encoder(self.embed(ids)))[0])


class Flat(nn.Sequential):
    """Every pixel has its own weight."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))


@pytest.mark.parametrize(
    ("case", "name", "why"),
    [
        (Case("segmenter", Segmenter().eval(), {"image": (1, 8, 8)}, {}), "image", "another shape"),
        (Case("tagger", Tagger().eval(), {"ids": (8,)}, {"ids": 20}), "encoder", "number of steps"),
        (Case("tagger", Tagger().eval(), {"ids": (8,)}, {"ids": 20}), "rnn", "another shape"),
        (Case("tagger", Tagger().eval(), {"ids": (8,)}, {"ids": 20}), "ids", "codes"),
        (Case("flat", Flat().eval(), {"image": (1, 8, 8)}, {}), "image", "fails"),
        (Case("flat", Flat().eval(), {"image": (1, 8, 8)}, {}), "nowhere", "no attribute"),
    ],
)
def test_where_the_outputs_would_show_it_it_is_refused(case: Case, name: str, why: str, tmp_path: Path) -> None:
    assert not offered(case)
    with pytest.raises(Problem, match=why):
        applied(case, tmp_path, {name: 0.5})


def test_what_becomes_too_narrow_is_not_offered_and_factors_are_held_to_what_works(tmp_path: Path) -> None:
    case = CASES["cnn"]()  # 8 x 8
    assert offered(case) == {"image": 4}
    narrow = replace(case, shapes={"image": (1, 4, 4)})
    assert offered(narrow) == {"image": 2}
    assert applied(narrow, tmp_path, {"image": 0.75}, most={"image": 2}).facts["factors"] == {"image": 2}
    assert not offered(replace(case, shapes={"image": (1, 3, 3)}))


def test_a_layer_whose_steps_are_those_of_an_input_is_offered_once() -> None:
    assert list(offered(CASES["lstm"]())) == ["x"]
    assert list(offered(CASES["events"]())) == ["rnn"]


def test_an_input_without_a_first_convolution_keeps_its_size_where_strides_are_asked_for(tmp_path: Path) -> None:
    result = applied(CASES["inception"](), tmp_path, {"series": 0.5}, where="stride")
    assert "no convolution" in result.facts["kept"]["series"]


def test_it_and_other_steps_take_each_others_results(tmp_path: Path) -> None:
    case = CASES["hand_encoder"]()
    tools = case.tools(tmp_path)
    model = applied(case, tmp_path, {"blocks": 0.5}).model
    model = drop_blocks.apply(model, drop_blocks.Options(blocks=("blocks.0",)), tools).model
    ratios = {g.name: 0.5 for g in case.layout().of_kind("channels")}
    model = prune.apply(model, prune.Options(ratios=ratios, round_to=4), tools).model
    assert model(*case.tensors(3))[0].shape == (3, 4)
    case = CASES["events"]()
    for twice in (False, True):
        model = shrink_rnn.apply(
            applied(case, tmp_path, {"rnn": 0.5}).model, shrink_rnn.Options(ratios={"rnn": 0.5}), case.tools(tmp_path)
        ).model
        if twice:
            options = downscale.Options(ratios={"rnn": 0.5})
            model = downscale.apply(model, options, case.tools(tmp_path)).model
        assert model(*case.tensors(3))[0].shape == (3, 1)
