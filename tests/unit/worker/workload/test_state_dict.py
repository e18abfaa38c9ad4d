import argparse

import pytest
import torch
from safetensors.torch import save_file

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.sniff import sniff
from petra_deploy.worker.workload.state_dict import fit, read_weights
from tests.unit.worker.workload.cases import Net, Touch

torch.set_num_threads(1)


def loaded(path):
    weights, notes = read_weights(path, sniff(path), "hint")
    module = Net()
    return module, notes + fit(module, weights, path.name)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_weights_are_found_in_the_usual_wrappings(tmp_path, prefix, wrapper):
    trained = Net()
    weights = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 7, "loss": 0.5}, tmp_path / "m.pt")
    module, _ = loaded(tmp_path / "m.pt")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained.parameters(), strict=True))


def test_safetensors_are_read(tmp_path):
    trained = Net()
    save_file(trained.state_dict(), tmp_path / "m.bin")
    module, _ = loaded(tmp_path / "m.bin")
    assert torch.equal(module.fc.weight, trained.fc.weight)


def test_weights_of_a_pickled_module_are_taken_without_running_its_class(tmp_path):
    trained = Net()
    torch.save(trained, tmp_path / "m.pt")
    module, notes = loaded(tmp_path / "m.pt")
    assert torch.equal(module.fc.weight, trained.fc.weight)
    assert "only the weights" in notes[0]


def test_settings_beside_the_weights_do_no_harm(tmp_path):
    torch.save({"state_dict": Net().state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pt")
    loaded(tmp_path / "m.pt")


@pytest.mark.parametrize("how", ["system", "exec", "open"])
def test_code_beside_the_weights_is_refused_and_not_run(tmp_path, how):
    torch.save({**Net().state_dict(), "extra": Touch(tmp_path / "canary", how)}, tmp_path / "m.pt")
    with pytest.raises(Problem, match="code of its own"):
        loaded(tmp_path / "m.pt")
    assert not (tmp_path / "canary").exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    weights = Net().state_dict()
    del weights["fc.bias"]
    torch.save({**weights, "head.weight": torch.zeros(2)}, tmp_path / "m.pt")
    with pytest.raises(Problem, match=r"1 missing \(fc.bias\) and 1 unknown \(head.weight\)"):
        loaded(tmp_path / "m.pt")
    torch.save(Net(width=5).state_dict(), tmp_path / "m.pt")
    with pytest.raises(Problem, match=r"conv.weight is \[5, 1, 3, 3\] in the file and \[4, 1, 3, 3\]"):
        loaded(tmp_path / "m.pt")


def test_a_dict_without_tensors_is_no_model(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(Problem, match="dict without tensors"):
        loaded(tmp_path / "m.pt")
