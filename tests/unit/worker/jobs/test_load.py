"""The load job as a whole: each form that users have, and each that they should not open."""

import contextlib
import importlib.util
import sys

import cloudpickle
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.core.job import Load
from petra_deploy.core.outcome import Failed
from petra_deploy.core.samples import Samples
from petra_deploy.core.store import Store
from petra_deploy.core.workload import DataSource, Loaded, LoadOptions, ModelSource
from petra_deploy.testing.inline import Inline
from petra_deploy.worker.workload.onnx_file import runner
from petra_deploy.worker.workload.opened import open_graph, open_module
from tests.unit.worker.workload.cases import NET, Net, Touch, images, plain, rewrite

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Desk:
    """A folder with data.npz and net.py, and a load that names files in it."""

    def __init__(self, folder):
        self.folder = folder
        self.run = Inline(Store(folder / "store"))
        np.savez(folder / "data.npz", **images())
        (folder / "net.py").write_text(NET)

    def path(self, name):
        return None if name is None else str(self.folder / name)

    def load(self, model=None, data="data.npz", *, factory=None, trust=False, inputs=(), metric=None, **source):
        return self.run(
            Load(
                model=ModelSource(path=self.path(model), factory=self.path(factory), trust=trust),
                data=DataSource(path=self.path(data), **{name: self.path(value) for name, value in source.items()}),
                options=LoadOptions(inputs=inputs, metric=metric),
            )
        )

    def must(self, *names, **options) -> Loaded:
        answer = self.load(*names, **options)
        assert not isinstance(answer, Failed), answer
        return answer.value

    def refused(self, *names, **options) -> Failed:
        answer = self.load(*names, **options)
        assert isinstance(answer, Failed), "it was loaded"
        assert answer.reason
        assert answer.hint
        assert "\n" not in answer.reason + answer.hint
        return answer


@pytest.fixture
def desk(tmp_path):
    before = list(sys.path)
    yield Desk(tmp_path)
    sys.path[:] = before


def outputs(desk, loaded, rows=5):
    """Of the model as later jobs open it, on rows of the selection split."""
    workload = loaded.workload
    feeds = {
        k: np.array(v) for k, v in Samples.open(desk.run.store.path(workload.selection.key)).first(rows).inputs.items()
    }
    if workload.is_graph:
        return feeds, runner(open_graph(desk.run.store, workload))(feeds)[0][1]
    with torch.no_grad():
        return feeds, open_module(desk.run.store, workload)(*map(torch.from_numpy, feeds.values()))[0].numpy()


def test_every_form_gives_the_same_outputs_as_the_model_itself(desk):
    torch.manual_seed(0)
    model = Net().eval()
    example = (torch.randn(2, 1, 8, 8),)
    torch.save(model.state_dict(), desk.folder / "weights.pt")
    torch.save(model, desk.folder / "whole.pt")
    torch.jit.save(torch.jit.script(model), str(desk.folder / "script.pt"))
    torch.jit.save(torch.jit.trace(model, example), str(desk.folder / "trace.pt"))
    dynamic = torch.export.export(model, example, dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(dynamic, desk.folder / "dynamic.pt2")
    torch.export.save(torch.export.export(model, (example[0][:1],)), desk.folder / "static.pt2")
    torch.onnx.export(model, example, str(desk.folder / "model.onnx"), dynamo=False, input_names=["x"])
    ways = {
        "weights.pt": ("state_dict", {"factory": "net.py:Net"}),
        "whole.pt": ("module", {"trust": True}),
        "script.pt": ("torchscript", {"trust": True}),
        "trace.pt": ("torchscript", {"trust": True}),
        "dynamic.pt2": ("exported", {"trust": True}),
        "static.pt2": ("exported", {"trust": True}),
        "model.onnx": ("onnx", {}),
    }
    for name, (form, options) in ways.items():
        loaded = desk.must(name, **options)
        assert loaded.workload.form == form, name
        assert loaded.workload.signature.dynamic_batch, name
        assert loaded.workload.has_layers, (name, loaded.workload.unlifted)
        assert loaded.workload.metric.name == "accuracy"
        feeds, given = outputs(desk, loaded)
        with torch.no_grad():
            assert np.allclose(model(torch.from_numpy(feeds["x"])).numpy(), given, atol=1e-4), name


def test_a_graph_that_cannot_be_lifted_is_loaded_all_the_same_and_says_why(desk):
    x, y = (onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["n", 1, 8, 8]), ("y", ["n", 1])))
    nodes = [onnx.helper.make_node("Det", ["x"], ["y"])]
    graph = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y]), ir_version=9,
                                   opset_imports=[onnx.helper.make_opsetid("", 20)])  # fmt: skip
    onnx.save(graph, desk.folder / "model.onnx")
    workload = desk.must("model.onnx", data=None).workload
    assert not workload.has_layers
    assert workload.unlifted == "operator Det cannot be lifted"
    assert any("no layer of the graph can be removed or trained: operator Det" in note for note in workload.notes)


def test_a_plain_module_needs_no_trust_and_is_split(desk):
    torch.save(plain(), desk.folder / "m.pt")
    loaded = desk.must("m.pt")
    workload = loaded.workload
    assert (workload.train.rows, workload.selection.rows, loaded.sealed.split.rows) == (36, 12, 12)
    assert workload.train.labelled
    assert workload.sha256
    assert workload.name == "m"


def test_the_same_inputs_give_the_same_keys(desk):
    torch.save(plain(), desk.folder / "m.pt")
    assert desk.must("m.pt") == desk.must("m.pt")


def test_a_factory_alone_brings_a_trained_model_whose_weights_are_kept(desk):
    (desk.folder / "make.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.seed()\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    loaded = desk.must(factory="make.py:make")
    assert np.array_equal(outputs(desk, loaded)[1], outputs(desk, loaded)[1])
    assert str(desk.folder) in loaded.workload.readable


def test_a_change_of_the_users_code_is_another_model(desk):
    torch.save(Net().state_dict(), desk.folder / "m.pt")
    first = desk.must("m.pt", factory="net.py:Net").workload.model
    (desk.folder / "net.py").write_text(NET.replace("torch.relu", "torch.tanh"))
    assert desk.must("m.pt", factory="net.py:Net").workload.model != first


def test_a_workload_file_brings_model_data_and_metric(desk):
    (desk.folder / "work.py").write_text(
        NET + "import numpy as np\nX = np.random.default_rng(0).random((40, 1, 8, 8))\nY = np.arange(40) % 3\n"
        "def model(): return Net()\ndef train(): return X, Y\n"
        "def selection():\n    for i in range(0, 40, 8): yield torch.tensor(X[i:i+8]), torch.tensor(Y[i:i+8])\n"
        "def test(): return {'x': X, 'target': Y}\n"
        "def metric(outputs, targets): return float((outputs.argmax(1) == targets).mean())\n"
        "metric.higher_is_better, metric.bounded = True, True\n"
    )
    loaded = desk.must(data="work.py")
    assert loaded.workload.metric.name == f"{desk.folder}/work.py:metric"
    assert loaded.workload.metric.bounded
    assert (loaded.workload.train.rows, loaded.workload.selection.rows, loaded.sealed.split.rows) == (40, 40, 40)
    assert any("cast from float64" in note for note in loaded.workload.notes)


def test_objects_of_the_python_api_are_loaded(desk):
    model = desk.folder / "model.pkl"
    model.write_bytes(cloudpickle.dumps(plain()))
    data = desk.folder / "data.pkl"
    data.write_bytes(cloudpickle.dumps((images()["x"], images()["target"])))
    answer = desk.run(
        Load(
            model=ModelSource(path=str(model), cloudpickled=True),
            data=DataSource(path=str(data), cloudpickled=True),
            options=LoadOptions(),
        )
    )
    assert not isinstance(answer, Failed), answer
    assert outputs(desk, answer.value)[1].shape == (5, 3)


def test_without_labels_it_is_agreement_on_the_users_rows(desk):
    np.savez(desk.folder / "data.npz", x=images()["x"])
    torch.save(plain(), desk.folder / "m.pt")
    workload = desk.must("m.pt").workload
    assert workload.metric.name == "agreement"
    assert (workload.selection.origin, workload.selection.labelled) == ("data", False)
    assert any("without labels" in note for note in workload.notes)


def test_without_data_it_is_agreement_on_random_rows(desk):
    torch.save(nn.Sequential(nn.Embedding(70, 4), nn.Flatten(), nn.Linear(24, 2)), desk.folder / "m.pt")
    loaded = desk.must("m.pt", None, inputs=("ids:int64[1,6]",))
    workload = loaded.workload
    assert (workload.train, workload.metric.name, workload.selection.origin) == (None, "agreement", "random")
    ids = Samples.open(desk.run.store.path(workload.selection.key)).inputs["ids"]
    assert 60 < ids.max() < 70
    assert any("random inputs" in note for note in workload.notes)


def test_half_precision_weights_are_taken_as_float32(desk):
    torch.save(plain().half(), desk.folder / "m.pt")
    loaded = desk.must("m.pt")
    assert outputs(desk, loaded)[1].dtype == np.float32
    assert any("float16" in note for note in loaded.workload.notes)


HOSTILE = ["pickle", "state dict", "raw pickle", "pt2", "torchscript", "npz"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_in_a_file_is_refused_and_its_canary_never_made(desk, kind):
    canary = desk.folder / "canary"
    model, options, data = "m.pt", {}, "data.npz"
    if kind == "pickle":
        module = plain()
        module.extra = Touch(canary)
        torch.save(module, desk.folder / model)
    elif kind == "state dict":
        torch.save({**Net().state_dict(), "extra": Touch(canary)}, desk.folder / model)
        options = {"factory": "net.py:Net"}
    elif kind == "raw pickle":
        (desk.folder / model).write_bytes(cloudpickle.dumps(Touch(canary)))
    elif kind == "pt2":
        torch.export.save(torch.export.export(plain(), (torch.randn(1, 1, 8, 8),)), desk.folder / "clean.pt2")
        torch.save(Touch(canary), desk.folder / "evil.pt")
        evil = {"sample_inputs/model.pt": (desk.folder / "evil.pt").read_bytes()}
        rewrite(desk.folder / "clean.pt2", desk.folder / model, evil)
        with contextlib.suppress(Exception):
            torch.export.load(str(desk.folder / model))
        assert canary.exists(), "it does carry code: torch itself runs it"
        canary.unlink()
    elif kind == "torchscript":
        torch.jit.save(_saving_script(canary), str(desk.folder / model))
        torch.jit.load(str(desk.folder / model))
        assert canary.exists(), "it does carry code: torch itself runs it"
        canary.unlink()
    else:
        torch.save(plain(), desk.folder / model)
        np.savez(desk.folder / "evil.npz", x=np.array([Touch(canary)], dtype=object))
        data = "evil.npz"
    refused = desk.refused(model, data, **options)
    assert refused.kind == "input"
    assert not canary.exists()


def _saving_script(canary):
    path = canary.parent / "saver.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class Saver(nn.Module):\n"
        "    def forward(self, x: torch.Tensor): return x\n"
        "    @torch.jit.export\n"
        "    def __getstate__(self): return 1\n"
        "    @torch.jit.export\n"
        "    def __setstate__(self, state: int):\n"
        "        self.training = False\n"
        f"        torch.ops.aten.save(torch.ones(1), {str(canary)!r})\n"
    )
    spec = importlib.util.spec_from_file_location("saver_of_canaries", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return torch.jit.script(module.Saver())


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("text.pt", {}, "is a text file"),
        ("empty.pt", {}, "is empty"),
        ("cut.pt", {}, "cut short"),
        ("none.pt", {}, "does not exist"),
        ("weights.pt", {}, "holds weights only"),
        ("whole.pt", {}, "code of its own"),
        ("raises.pt", {"factory": "net.py:Raises"}, "forward raised ValueError: no such thing"),
        ("weights.pt", {"factory": "net.py:Two"}, "do not fit the module"),
        ("weights.pt", {"factory": "net.py:Nothing"}, "has no Nothing"),
        ("plain.pt", {"data": "nan.npz"}, "'x' in nan.npz holds NaN, in 1 of 60 rows"),
        ("plain.pt", {"data": "labels.npz"}, "labels run up to 3, but the model scores 3 classes"),
        ("plain.pt", {"data": "shape.npz"}, "forward raised RuntimeError"),
        ("plain.pt", {"data": "few.npz"}, "too few to split"),
        ("plain.pt", {"data": "text.pt"}, "not an npz archive"),
        ("plain.pt", {"data": None}, "nothing tells what this model's inputs look like"),
        ("plain.pt", {"metric": "speed"}, "no metric called 'speed'"),
        ("plain.pt", {"inputs": ("x:float7[1]",)}, "no type float7"),
        ("broken.pt", {}, "output is NaN"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_a_next_step(desk, model, options, said):
    given, folder = images(), desk.folder
    (folder / "text.pt").write_text("not a model\n")
    (folder / "empty.pt").touch()
    torch.save(Net().state_dict(), folder / "weights.pt")
    torch.save(Net(), folder / "whole.pt")
    torch.save({"scale": torch.ones(1)}, folder / "raises.pt")
    torch.save(plain(), folder / "plain.pt")
    (folder / "cut.pt").write_bytes((folder / "plain.pt").read_bytes()[:900])
    broken = plain()
    nn.init.constant_(broken[0].weight, float("nan"))
    torch.save(broken, folder / "broken.pt")
    np.savez(
        folder / "nan.npz", **{**given, "x": np.where(np.arange(60)[:, None, None, None] == 50, np.nan, given["x"])}
    )
    np.savez(folder / "labels.npz", **{**given, "target": given["target"] + 1})
    np.savez(folder / "shape.npz", **{**given, "x": given["x"][:, :, :5]})
    np.savez(folder / "few.npz", x=given["x"][:9], target=given["target"][:9])
    refused = desk.refused(model, **options)
    assert said in refused.reason
    assert refused.kind in ("input", "unsupported")


def test_a_problem_is_what_is_raised(desk):
    from petra_deploy.worker.context import Context
    from petra_deploy.worker.jobs import load

    job = Load(model=ModelSource(path=None), data=DataSource(), options=LoadOptions())
    with pytest.raises(Problem, match="no model was given"):
        load.run(job, Context(desk.run.store, lambda line: None))
