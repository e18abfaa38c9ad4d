import pickle

import pytest
import torch
from torch import nn

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import pickled
from petra_deploy.worker.workload.sniff import sniff
from tests.unit.worker.workload.cases import NET, Net, Touch, plain

torch.set_num_threads(1)


def opened(module, path):
    torch.save(module, path)
    return pickled.open_plain(path, sniff(path))


PLAIN = {
    "cnn": (plain(), (torch.randn(2, 1, 8, 8),)),
    "batch norm": (nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval(), (torch.randn(2, 1, 8, 8),)),
    "lstm": (nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), (torch.randn(2, 5, 3),)),
    "gru": (nn.GRU(3, 4, batch_first=True), (torch.randn(2, 5, 3),)),
    "encoder": (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True), 2).eval(),
        (torch.randn(2, 3, 8),),
    ),
    "padding": (nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect"), (torch.randn(1, 1, 6, 6),)),
    "embedding": (nn.EmbeddingBag(9, 3), (torch.randint(0, 9, (2, 4)),)),
    "unflatten": (nn.Unflatten(1, (2, 3)), (torch.randn(2, 6),)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_layers_load_without_trust_and_compute_the_same(tmp_path, name):
    module, inputs = PLAIN[name]
    again = opened(module, tmp_path / "m.pt")
    with torch.no_grad():
        theirs, ours = module(*inputs), again(*inputs)
    for a, b in zip(torch.utils._pytree.tree_leaves(theirs), torch.utils._pytree.tree_leaves(ours), strict=True):
        assert torch.equal(a, b)
    assert list(again.state_dict()) == list(module.state_dict())


def test_shared_layers_and_parameters_stay_shared(tmp_path):
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = layer.weight
    again = opened(nn.Sequential(layer, layer, tied), tmp_path / "m.pt")
    assert again[0] is again[1]
    assert again[2].weight is again[0].weight


def test_layers_in_a_checkpoint_dict_are_found(tmp_path):
    torch.save({"model": plain(), "epoch": 3}, tmp_path / "m.pt")
    assert isinstance(pickled.open_plain(tmp_path / "m.pt", sniff(tmp_path / "m.pt")), nn.Sequential)


def test_a_state_that_replaces_forward_is_refused(tmp_path):
    module = plain()
    module[1].forward = nn.functional.gelu
    with pytest.raises(Problem, match="replaces the method forward"):
        opened(module, tmp_path / "m.pt")


def test_a_state_that_plants_hooks_is_refused(tmp_path):
    module = plain()
    module[1].register_forward_hook(nn.functional.relu)
    with pytest.raises(Problem, match="carries forward hooks"):
        opened(module, tmp_path / "m.pt")


@pytest.mark.parametrize("how", ["system", "exec", "open"])
def test_code_in_a_plain_module_is_named_and_not_run(tmp_path, how):
    module = plain()
    module.extra = Touch(tmp_path / "canary", how)
    with pytest.raises(Problem, match=r"code of its own \((posix\.system|builtins\.exec|(io|_io)\.open)\)") as caught:
        opened(module, tmp_path / "m.pt")
    assert "--trust" in caught.value.hint
    assert not (tmp_path / "canary").exists()


def test_a_pickle_that_calls_a_known_layer_is_refused(tmp_path):
    class Call:
        def __reduce__(self):
            return nn.Linear, (10**6, 10**6)

    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    module = nn.Sequential(nn.Linear(2, 2))
    module.extra = Call()
    with pytest.raises(Problem, match=r"calls torch\.nn\.modules\.linear\.Linear"):
        opened(module, tmp_path / "m.pt")


def test_a_foreign_class_is_refused_by_its_name(tmp_path):
    with pytest.raises(Problem, match=r"tests\.unit\.worker\.workload\.cases\.Net"):
        opened(Net(), tmp_path / "m.pt")


def test_with_trust_the_class_is_found_beside_the_model(tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "net_beside.py").write_text(NET)
    monkeypatch.syspath_prepend(str(folder))
    import net_beside

    torch.save(net_beside.Net(), folder / "m.pt")
    monkeypatch.undo()
    import sys

    del sys.modules["net_beside"]
    module = pickled.open_trusted(folder / "m.pt", sniff(folder / "m.pt"), folder)
    assert type(module).__name__ == "Net"
    sys.path.remove(str(folder))


def test_with_trust_a_class_of_a_script_is_found_in_the_one_file_that_defines_it(tmp_path, monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "Net", Net, raising=False)
    monkeypatch.setattr(Net, "__module__", "__main__")
    torch.save(Net(), tmp_path / "m.pt")
    monkeypatch.undo()
    with pytest.raises(Problem, match="no Python file beside the model defines it"):
        pickled.open_trusted(tmp_path / "m.pt", sniff(tmp_path / "m.pt"), tmp_path)
    (tmp_path / "train.py").write_text(NET)
    module = pickled.open_trusted(tmp_path / "m.pt", sniff(tmp_path / "m.pt"), tmp_path)
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    (tmp_path / "other.py").write_text(NET)
    with pytest.raises(Problem, match=r"other\.py and train\.py"):
        pickled.open_trusted(tmp_path / "m.pt", sniff(tmp_path / "m.pt"), tmp_path)


def test_a_module_that_is_not_there_is_named(tmp_path):
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Net()).replace(b"tests.unit.worker", b"absen.unit.worker"))
    with pytest.raises(Problem, match="needs the Python module absen"):
        pickled.open_trusted(tmp_path / "m.pt", sniff(tmp_path / "m.pt"), tmp_path)
