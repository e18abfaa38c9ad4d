"""What docs/loading.md and docs/data.md show is run: each of their Python files, and what they say of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from petra_deploy.core import metrics, registry
from petra_deploy.core.job import Load
from petra_deploy.core.outcome import Done
from petra_deploy.core.store import Store
from petra_deploy.core.workload import DataSource, LoadOptions, ModelSource
from petra_deploy.testing.inline import Inline

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("loading.md", "data.md")}
FILES = {
    name: text for page in PAGES.values() for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S)
}


def run(folder, name):
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PETRA_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder with every file of the pages, and what `forms.py` and `arrays.py` leave there."""
    folder = tmp_path_factory.mktemp("docs")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    run(folder, "forms.py")
    run(folder, "arrays.py")
    return folder


@pytest.fixture
def load(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    inline = Inline(Store(tmp_path / "store"))

    def loaded(model=None, factory=None, data=None, metric=None, trust=False, inputs=()):
        answer = inline(
            Load(
                model=ModelSource(
                    path=str(shown / model) if model else None,
                    factory=str(shown / factory) if factory else None,
                    trust=trust,
                ),
                data=DataSource(path=str(shown / data) if data else None),
                options=LoadOptions(metric=str(shown / metric) if metric and ":" in metric else metric, inputs=inputs),
            )
        )
        return answer.value if isinstance(answer, Done) else answer

    yield loaded
    sys.modules.pop("net", None)


def rows(loaded):
    return loaded.workload.train.rows, loaded.workload.selection.rows, loaded.sealed.split.rows


@pytest.mark.parametrize(
    ("file", "factory", "trust", "form"),
    [
        ("weights.pt", "net.py:Net", False, "state_dict"),
        ("checkpoint.pt", "net.py:Net", False, "state_dict"),
        ("weights.safetensors", "net.py:Net", False, "state_dict"),
        ("plain.pt", None, False, "module"),
        ("whole.pt", None, True, "module"),
        ("whole.pt", "net.py:Net", False, "state_dict"),
        ("script.pt", None, True, "torchscript"),
        ("program.pt2", None, True, "exported"),
        ("model.onnx", None, False, "onnx"),
    ],
)
def test_every_form_is_opened_as_its_comment_says(load, file, factory, trust, form):
    said = next(line for line in FILES["forms.py"].splitlines() if f'"{file}"' in line).rpartition("#")[2]
    assert factory is None or factory in said
    assert not trust or "--trust" in said
    loaded = load(file, factory=factory, trust=trust, inputs=("float32[1,8]",) if form == "torchscript" else ("[1,8]",))
    assert loaded.workload.form == form, loaded
    assert loaded.workload.signature.inputs[0].shape == ("batch", 8)


@pytest.mark.parametrize("file", ["whole.pt", "script.pt", "program.pt2"])
def test_code_inside_a_file_needs_trust(load, file):
    assert "runs when it is opened" in load(file, inputs=("[1,8]",)).reason.replace("would run", "runs")


def test_the_refusal_is_the_one_shown(load):
    failed = load("whole.pt", inputs=("[1,8]",))
    page = " ".join(PAGES["loading.md"].split())
    assert f"error: {failed.reason} hint: {failed.hint}" in page


def test_the_npz_is_split_as_said(load):
    loaded = load(factory="net.py:Net", data="data.npz")
    assert rows(loaded) == (240, 80, 80)
    assert loaded.workload.metric.name == "accuracy"


def test_the_workload_file_of_functions_brings_everything(load, shown):
    loaded = load(data="workload.py")
    assert rows(loaded) == (600, 200, 200)
    assert loaded.workload.metric.name == f"{shown}/workload.py:metric"
    assert loaded.workload.metric.bounded


def test_the_workload_file_of_a_class_brings_everything(load):
    loaded = load(data="study.py")
    assert rows(loaded) == (240, 80, 80)
    assert loaded.workload.metric.name == "mae"


def test_a_metric_of_a_file_is_taken_with_its_mark(load):
    metric = load(factory="net.py:Net", data="data.npz", metric="score.py:worst").workload.metric
    assert (metric.higher_is_better, metric.needs_labels, metric.bounded) == (False, True, False)


def test_the_table_of_metrics_is_theirs():
    told = {}
    for line in PAGES["data.md"].splitlines():
        if match := re.match(r"\| (`.*?`) \| (higher|lower) \| (yes|no) \|", line):
            names, better, bounded = match.groups()
            told |= dict.fromkeys(re.findall(r"`(\w+)`", names), (better == "higher", bounded == "yes"))
    assert told == {name: (spec.higher_is_better, spec.bounded) for name, spec in metrics.SPECS.items()}


def test_a_module_in_memory_is_inspected(shown):
    run(shown, "in_memory.py")


def test_every_technique_has_its_section():
    text = (DOCS / "techniques.md").read_text()
    missing = [name for name in registry.names("technique") if f"\n## {name}\n" not in text]
    assert not missing, f"docs/techniques.md says nothing of {', '.join(missing)}"


def test_links_between_the_pages_lead_somewhere():
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
