import zipfile

import numpy as np
import pytest
import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import DataSource
from petra_deploy.worker.workload import data, npz
from petra_deploy.worker.workload.objects import table_of
from tests.unit.worker.workload.cases import Touch, images

X, Y = images()["x"], images()["target"]


def test_an_npz_gives_its_inputs_by_name_and_its_target(tmp_path):
    np.savez(tmp_path / "d.npz", ids=X, mask=X, labels=Y)
    table = npz.read(tmp_path / "d.npz", ())
    assert list(table.inputs) == ["ids", "mask"]
    assert np.array_equal(table.target, Y)


def test_an_array_called_y_is_an_input_where_the_model_takes_one(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    assert npz.read(tmp_path / "d.npz", ("x",)).target is not None
    assert npz.read(tmp_path / "d.npz", ("x", "y")).target is None


def test_shards_are_joined_in_the_order_of_their_names(tmp_path):
    for name, part in (("b", slice(0, 40)), ("a", slice(40, 60))):
        np.savez(tmp_path / f"{name}.npz", x=X[part], target=Y[part])
    table = data.read(DataSource(path=str(tmp_path)), ()).whole
    assert np.array_equal(table.inputs["x"], np.concatenate([X[40:], X[:40]]))


def test_a_folder_may_hold_the_splits(tmp_path):
    for name in ("train", "val", "test"):
        np.savez(tmp_path / f"{name}.npz", x=X, target=Y)
    assert set(data.read(DataSource(path=str(tmp_path)), ()).parts) == {"train", "selection", "test"}


def test_object_arrays_are_refused_and_not_unpickled(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([Touch(tmp_path / "canary")], dtype=object))
    with pytest.raises(Problem, match="holds Python objects, which would run code"):
        npz.read(tmp_path / "d.npz", ())
    assert not (tmp_path / "canary").exists()


def test_a_header_that_asks_for_more_than_there_is_allocates_nothing(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(Problem, match="cut short"):
        npz.read(tmp_path / "d.npz", ())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "target": Y[:-1]}, "differ in rows"),
        ({"x": X[:0], "target": Y[:0]}, "is empty"),
        ({"x": np.array(["a", "b"])}, "holds text"),
        ({"target": Y}, "no inputs"),
        ({"x": np.float32(3)}, "single number"),
        ({}, "no arrays"),
    ],
)
def test_bad_arrays_are_one_clear_sentence(tmp_path, arrays, said):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(Problem, match=said) as caught:
        npz.read(tmp_path / "d.npz", ())
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"text\n", b"\x80\x04\x95"])
def test_what_is_no_npz_is_said(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(Problem, match=r"is empty|not an npz archive"):
        npz.read(tmp_path / "d.npz", ())


def test_a_truncated_npz_is_said(tmp_path):
    np.savez(tmp_path / "d.npz", x=X)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Problem, match="cut short"):
        npz.read(tmp_path / "d.npz", ())


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return torch.from_numpy(X[index]), int(Y[index])


GIVEN = {
    "a pair": (X, Y),
    "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
    "a dict": {"x": X, "target": Y},
    "a function": lambda: (X, Y),
    "a dataset": Rows(),
    "a loader": torch.utils.data.DataLoader(Rows(), batch_size=7),
    "batches": [(X[:25], Y[:25]), (X[25:], Y[25:])],
    "rows": list(zip(X, Y, strict=True)),
    "a generator of dicts": lambda: ({"x": X[i : i + 9], "target": Y[i : i + 9]} for i in range(0, len(X), 9)),
    "a bunch": {"data": X, "target": Y, "feature_names": None} and {"data": X, "target": Y},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_python_objects_are_read_in_every_usual_form(kind):
    table = table_of(GIVEN[kind], "train", ())
    assert np.array_equal(next(iter(table.inputs.values())), X)
    assert np.array_equal(table.target, Y)


def test_several_inputs_in_a_row_end_with_the_target():
    table = table_of(torch.utils.data.TensorDataset(*map(torch.from_numpy, (X, X, Y))), "train", ())
    assert list(table.inputs) == ["#0", "#1"]
    assert np.array_equal(table.target, Y)


def test_what_user_code_raises_is_said_in_one_line():
    def broken():
        raise KeyError("missing column")

    with pytest.raises(Problem, match="reading train raised KeyError: 'missing column'"):
        table_of(broken, "train", ())


def test_ragged_rows_are_refused():
    with pytest.raises(Problem, match="differ in shape"):
        table_of([(X[0], 1), (X[0, :, :4], 2)], "train", ())


@pytest.mark.parametrize(
    "text",
    [
        "{0}\ndef train(): return X, Y\ndef test(): return X, Y\nmetric = 'f1'",
        "{0}\nclass Mine:\n    def train(self): return X, Y\n    def test(self): return X, Y\n    metric = 'f1'",
        "{0}\nworkload = {{'train': (X, Y), 'test': [(X, Y)], 'metric': 'f1'}}",
    ],
)
def test_a_workload_file_offers_functions_a_class_or_a_dict(tmp_path, text):
    head = "import numpy as np\nX = np.zeros((40, 3), 'f4')\nY = np.arange(40) % 2"
    (tmp_path / "w.py").write_text(text.format(head))
    script = data.open_script(tmp_path / "w.py")
    brought = data.read(DataSource(path=str(tmp_path / "w.py")), (), script)
    assert set(brought.parts) == {"train", "test"}
    assert script.get("metric") == "f1"


@pytest.mark.parametrize(
    "text",
    [
        "from torch.utils import data\ndef train(): return X, Y\ndef test(): return X, Y",
        "from petra_deploy.core.metrics import metric\ndef train(): return X, Y\ndef test(): return X, Y",
        "from torch import nn\nclass Net(nn.Module): pass\nclass W:\n"
        "    def train(self): return X, Y\n    def test(self): return X, Y",
    ],
)
def test_what_a_workload_file_imports_or_builds_with_is_not_taken_for_what_it_offers(tmp_path, text):
    (tmp_path / "w.py").write_text(f"import numpy as np\nX = np.zeros((40, 3), 'f4')\nY = np.arange(40) % 2\n{text}")
    script = data.open_script(tmp_path / "w.py")
    assert set(data.read(DataSource(path=str(tmp_path / "w.py")), (), script).parts) == {"train", "test"}
    assert not script.has("data")
    assert not script.has("metric")


def test_a_function_beside_the_class_completes_it(tmp_path):
    text = (
        "def metric(outputs, targets): return 1.0\nclass W:\n    def data(self): return None\n    def model(self): pass"
    )
    (tmp_path / "w.py").write_text(text)
    script = data.open_script(tmp_path / "w.py")
    assert script.spec("metric").endswith("w.py:metric")
    assert script.spec("model").endswith("w.py:W.model")
    assert not script.is_method("metric")


def test_a_workload_file_that_raises_names_its_line(tmp_path):
    (tmp_path / "w.py").write_text("a = 1\nraise RuntimeError('no data here')\n")
    with pytest.raises(Problem, match=r"w\.py raised RuntimeError: no data here \(line 2\)"):
        data.open_script(tmp_path / "w.py")
