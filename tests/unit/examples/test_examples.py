"""Each example's model runs and exports its promise; its README names files and options that exist."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "train.py").exists())
FEEDS = {
    "digits_cnn": lambda: (torch.rand(2, 3, 32, 32),),
    "mnist_mobilenet": lambda: (torch.rand(2, 1, 28, 28),),
    "mnist_rows_lstm": lambda: (torch.rand(2, 28, 28),),
    "mnist_mlp": lambda: (torch.rand(2, 784),),
    "mnist_halves": lambda: (torch.rand(2, 1, 28, 14), torch.rand(2, 392)),
    "ucr_inception": lambda: (torch.rand(2, 1, 427),),
    "events": lambda: (torch.randint(512, (2, 32)), torch.rand(2, 32, 2)),
    "text": lambda: (torch.randint(4096, (2, 64)), torch.ones(2, 64, dtype=torch.int64)),
}
OUTPUTS: dict[str, tuple[int, ...]] = {  # beside the rows
    "digits_cnn": (10,), "mnist_mobilenet": (10,), "mnist_rows_lstm": (10,), "ucr_inception": (6,), "events": (1,),
    "text": (64, 9), "mnist_mlp": (10,), "mnist_halves": (10,),
}  # fmt: skip


def test_every_example_is_here() -> None:
    assert set(NAMES) == set(FEEDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_gives_its_scores_and_is_as_large_as_the_table_says(name: str) -> None:
    model = runpy.run_path(str(EXAMPLES / name / "model.py"))["build"]().eval()
    with torch.no_grad():
        scores = model(*FEEDS[name]())
    assert scores.shape == (2, *OUTPUTS[name])
    assert torch.isfinite(scores).all()
    row = next(line for line in (EXAMPLES / "README.md").read_text().splitlines() if f"[{name}]" in line)
    said = re.search(r"([\d.]+) M", row)
    assert said
    assert float(said[1]) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_how_to_train_and_to_optimize(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]
    assert ["python", f"examples/{name}/train.py"] in lines
    commands = [words for words in lines if words[:2] == ["petra-deploy", "optimize"]]
    written = (EXAMPLES / name / "train.py").read_text()
    assert commands
    for words in commands:
        model = Path(words[2])
        assert model.parent == Path("examples") / name
        assert f'"{model.name}"' in written
        for word in words[3:]:
            if word.startswith("examples/"):
                assert word.split(":")[0].removeprefix(f"examples/{name}/").split("/")[0] in ("model.py", "data")
