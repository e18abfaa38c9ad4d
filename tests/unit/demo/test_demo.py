"""The demo's data are scikit-learn's digits, and its model is one that a user could have brought."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import petra_deploy.demo
from petra_deploy.demo import train as demo
from petra_deploy.worker.workload import npz
from petra_deploy.worker.workload.data import Brought
from petra_deploy.worker.workload.splits import complete


def test_the_digits_are_those_of_scikit_learn() -> None:
    theirs = load_digits()
    with np.load(Path(petra_deploy.demo.__file__).with_name("digits.npz")) as ours:
        assert np.array_equal(ours["images"], theirs.images)
        assert np.array_equal(ours["labels"], theirs.target)
        assert ours["images"].dtype == ours["labels"].dtype == np.uint8


@pytest.fixture
def one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)


@pytest.mark.usefixtures("one_epoch")
def test_the_demo_learns_from_train_rows_alone_and_leaves_what_optimize_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    fit = demo._fit
    monkeypatch.setattr(demo, "_fit", lambda model, images, *rest: (seen.append(images), fit(model, images, *rest)))
    model_path, data_path, source_path = demo.train(tmp_path / "demo", seed=3)
    parts, _ = complete(Brought(whole=npz.read(data_path, ("image",))), 3)
    assert np.array_equal(seen[0], parts["train"].inputs["image"])
    namespace: dict[str, object] = {"__name__": "model"}
    exec(compile(source_path.read_text(), "model.py", "exec"), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    model.load_state_dict(torch.load(model_path, weights_only=True))
    with torch.no_grad():
        scores = model.eval()(torch.tensor(parts["test"].inputs["image"]))
    assert (scores.argmax(1).numpy() == parts["test"].target).mean() > 0.6  # after one epoch


@pytest.mark.slow
def test_the_demo_trained_in_full_is_right_on_97_of_100_test_rows(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "petra_deploy.demo.train", str(tmp_path)], check=True)
    parts, _ = complete(Brought(whole=npz.read(tmp_path / "data.npz", ("image",))), 0)
    model = demo.DigitsNet()
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.no_grad():
        scores = model.eval()(torch.tensor(parts["test"].inputs["image"]))
    assert (scores.argmax(1).numpy() == parts["test"].target).mean() > 0.97
