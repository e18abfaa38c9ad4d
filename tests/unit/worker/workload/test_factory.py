import sys

import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload import factory
from tests.unit.worker.workload.cases import NET


@pytest.fixture(autouse=True)
def _unchanged_path():
    before = list(sys.path)
    yield
    sys.path[:] = before


def test_a_class_or_a_function_of_a_file_makes_the_module(tmp_path):
    (tmp_path / "net.py").write_text(NET + "\ndef build(): return Net(8)\n")
    assert factory.make_module(f"{tmp_path}/net.py:Net").conv.out_channels == 4
    assert factory.make_module(f"{tmp_path}/net.py:build").conv.out_channels == 8
    assert factory.make_module(f"{tmp_path}/net.py").conv.out_channels == 8, "the only usual name is taken"


def test_the_file_may_import_its_neighbours_and_hides_no_installed_package(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "parts_of_it.py").write_text(NET)
    (tmp_path / "net.py").write_text("import torch\nfrom parts_of_it import Net\n")
    factory.make_module(f"{tmp_path}/net.py:Net")
    found = factory.code_digests([str(tmp_path)])
    assert [file.rpartition("/")[2] for file in found] == ["net.py", "parts_of_it.py"]
    del sys.modules["parts_of_it"]


def test_a_changed_file_is_run_again(tmp_path):
    for width in (3, 5):
        (tmp_path / "net.py").write_text(f"import torch\ndef build(): return torch.nn.Linear({width}, 1)\n")
        assert factory.make_module(f"{tmp_path}/net.py:build").in_features == width


def test_an_installed_module_is_imported():
    assert isinstance(factory.make_module("torch.nn:Identity"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("net.py:Missing", "has no Missing"),
        ("net.py:needs", "needs the arguments width"),
        ("net.py:number", "is a int, not a function"),
        ("net.py:gives", "returns a str, not a torch.nn.Module"),
        ("net.py:breaks", "raised RuntimeError: no weights"),
        ("net.py:leaves", "raised SystemExit: 3"),
        ("net.py", "does not say which function"),
        ("none.py:Net", "does not exist"),
        ("syntax.py:Net", "raised SyntaxError"),
        ("imports.py:Net", r"raised ModuleNotFoundError: .*no_such_module.* \(line 1\)"),
    ],
)
def test_what_cannot_be_made_is_one_clear_sentence(tmp_path, spec, said):
    (tmp_path / "net.py").write_text(
        "number = 3\ndef needs(width): pass\ndef gives(): return 'text'\n"
        "def breaks(): raise RuntimeError('no weights')\ndef leaves(): raise SystemExit(3)\n"
    )
    (tmp_path / "syntax.py").write_text("def (:\n")
    (tmp_path / "imports.py").write_text("import no_such_module\n")
    with pytest.raises(Problem, match=said) as caught:
        factory.make_module(f"{tmp_path}/{spec}")
    assert caught.value.kind == "input"


def test_a_missing_package_is_named():
    with pytest.raises(Problem, match=r"no_such_package\.net, which is not found"):
        factory.make_module("no_such_package.net:Net")


def test_a_method_of_a_class_or_an_entry_of_a_dict_makes_the_module_too(tmp_path):
    text = "class Workload:\n    def model(self): return Net(6)\nworkload = {'model': lambda: Net(7)}\n"
    (tmp_path / "work.py").write_text(NET + text)
    assert factory.make_module(f"{tmp_path}/work.py:Workload.model").conv.out_channels == 6
    assert factory.make_module(f"{tmp_path}/work.py:workload.model").conv.out_channels == 7
