"""One clear sentence with what to do next, the right exit code, no traceback, and no code run."""

import os
import pickle

import numpy as np
import pytest
import torch


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def refuse(place, *arguments, code=2, word=""):
    done = place.petra(*arguments)
    assert done.code == code, done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert word.lower() in done.err.lower()
    assert not (place.folder / "canary").exists()
    return done


def data(place, name, **arrays):
    np.savez(place.folder / name, **arrays)
    return name


@pytest.fixture(scope="module")
def rows():
    return np.zeros((90, 1, 8, 8), np.float32), np.arange(90) % 10


WITH = ("--model", "net.py:build")


def test_a_truncated_model(place):
    (place.folder / "run-cut.pt").write_bytes((place.folder / "model.pt").read_bytes()[:5000])
    refuse(place, "optimize", "run-cut.pt", *WITH, "--data", "data.npz", "--out", "run-x1")


def test_a_text_file_as_the_model(place):
    (place.folder / "run-text.pt").write_text("these are not weights\n" * 20)
    refuse(place, "optimize", "run-text.pt", *WITH, "--data", "data.npz", "--out", "run-x2", word="text")


def test_a_pickle_with_code_is_refused_and_not_run(place):
    path = place.folder / "run-evil.pt"
    torch.save(Evil(place.folder / "canary"), path)
    refuse(place, "optimize", "run-evil.pt", "--data", "data.npz", "--out", "run-x3", word="--trust")
    path.write_bytes(pickle.dumps(Evil(place.folder / "canary")))
    refuse(place, "optimize", "run-evil.pt", "--data", "data.npz", "--out", "run-x4")


def test_torchscript_needs_trust(place):
    torch.jit.script(torch.nn.Linear(3, 2)).save(str(place.folder / "run-script.pt"))
    refuse(place, "optimize", "run-script.pt", "--input", "x:float32[1,3]", "--out", "run-x5", word="--trust")


def test_an_exported_program_needs_trust(place):
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, str(place.folder / "run-program.pt2"))
    refuse(place, "optimize", "run-program.pt2", "--out", "run-x6", word="--trust")


def test_an_npz_with_objects(place):
    np.savez(place.folder / "run-objects.npz", image=np.array([Evil(place.folder / "canary")], dtype=object))
    refuse(place, "optimize", "model.pt", *WITH, "--data", "run-objects.npz", "--out", "run-x7")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("names", lambda x, y: {"picture": x, "other": x, "labels": y}, "image"),
        ("shapes", lambda x, y: {"image": x[:, :, :, :5].repeat(3, 1), "labels": y}, ""),
        ("nan", lambda x, y: {"image": x + np.float32("nan"), "labels": y}, "nan"),
        ("empty", lambda x, y: {"image": x[:0], "labels": y[:0]}, ""),
        ("rows", lambda x, y: {"image": x, "labels": y[:7]}, "7"),
        ("range", lambda x, y: {"image": x, "labels": y + 40}, "label"),
    ],
)
def test_data_that_does_not_fit(place, rows, name, change, word):
    refuse(place, "optimize", "model.pt", *WITH, "--data", data(place, f"run-{name}.npz", **change(*rows)),
           "--out", f"run-x-{name}", word=word)  # fmt: skip


BAD = """
import torch


class Bad(torch.nn.Module):
    def forward(self, image):
        raise ValueError("broken here")


def build():
    return Bad()
"""


def test_a_model_whose_forward_raises(place):
    (place.folder / "run_bad.py").write_text(BAD)
    refuse(
        place, "optimize", "--model", "run_bad.py:build", "--data", "data.npz", "--out", "run-x8", word="broken here"
    )


def test_an_unknown_target(place):
    refuse(
        place, "optimize", "model.pt", *WITH, "--data", "data.npz", "--target", "cpuu", "--out", "run-x9", word="cpu"
    )


def test_a_missing_model(place):
    refuse(place, "optimize", "nowhere.pt", "--out", "run-x10", word="nowhere.pt")


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/1"), reason="needs /proc")
def test_a_folder_that_cannot_be_written(place):
    refuse(place, "optimize", "model.pt", *WITH, "--data", "data.npz", "--out", "/proc/petra-out", word="/proc")


def test_an_unknown_option_suggests_the_near_one(place):
    done = place.petra("optimize", "model.pt", "--max-dorp", "1")
    assert done.code == 2
    assert "--max-drop" in done.err
