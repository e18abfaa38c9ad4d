"""Another version of a runtime in a folder, filled by pip itself from a wheel that the test makes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.job import Build
from petra_deploy.core.store import Store
from petra_deploy.driver import overlay
from petra_deploy.driver.dispatch import Dispatch
from petra_deploy.driver.executors import local
from tests.renamed_runtime import write_wheel
from tests.unit.worker.nets import CPU, add_graph

ROOT = Path(__file__).resolve().parents[3]
PARSED = overlay.Wanted(package="onnxruntime", version="1.99.0", runtime="onnxruntime")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "wheels"
    write_wheel(folder, "1.99.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("onnxruntime", "names no version"),
        ("onnxruntime>=1.30", "names no version"),
        ("onnxruntime==1.*", "names no version"),
        ("onnxruntime==1.30.0; python_version>'3'", "names no version"),
        ("--target=/tmp/x==1.0", "names no version"),
        ("https://example.org/onnxruntime.whl", "names no version"),
        ("torch==2.12.0", "torch is no runtime"),
        ("tensorrt==10.0.1", "tensorrt is no runtime"),
        ("onnxruntime==1.20.0", "works with onnxruntime 1.27 and later"),
        ("openvino==2025.4", "works with openvino 2026.0 and later"),
    ],
)
def test_what_is_no_other_version_of_a_runtime_is_refused_before_anything_is_fetched(
    requirement: str, said: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        overlay.parse(requirement)


def test_the_installed_version_is_refused_however_it_is_written() -> None:
    import onnxruntime

    for version in (onnxruntime.__version__, onnxruntime.__version__ + ".0"):
        with pytest.raises(BadInput, match="is what is installed"):
            overlay.parse(f"ONNXRuntime == {version}")


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["openvino"]]
    assert {f"{name}>={version}" for name, version in overlay.OLDEST.items()} <= set(asked)


def test_an_overlay_is_filled_once_and_a_child_imports_it_first(wheels: Path, store: Store) -> None:
    assert overlay.parse("onnxruntime==1.99.0") == PARSED
    folder = overlay.filled(PARSED, store.root, quiet)
    (wheels / "onnxruntime-1.99.0-py3-none-any.whl").unlink()
    assert overlay.filled(PARSED, store.root, quiet) == folder
    code = "import onnxruntime, importlib.metadata as m; print(onnxruntime.__version__, m.version('onnxruntime'))"
    done = subprocess.run([sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(folder)}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["1.99.0", "1.99.0"]


def test_a_version_that_is_not_there_names_those_that_are(wheels: Path, store: Store) -> None:
    write_wheel(wheels, "1.5.0")  # older than petra-deploy works with: not offered
    with pytest.raises(BadInput, match=r"pip finds no onnxruntime 1\.98\.0") as told:
        overlay.filled(overlay.parse("onnxruntime==1.98.0"), store.root, quiet)
    assert told.value.hint == "it offers 1.99.0"
    assert not list((store.root / "overlays").glob("onnxruntime-*"))


def test_what_cannot_be_imported_here_is_said_and_not_kept(wheels: Path, store: Store) -> None:
    write_wheel(wheels, "1.97.0", init="import a_package_that_nobody_has")
    with pytest.raises(BadInput, match="No module named 'a_package_that_nobody_has'"):
        overlay.filled(overlay.parse("onnxruntime==1.97.0"), store.root, quiet)
    assert [path.name for path in (store.root / "overlays").iterdir()] == ["lock"]


def test_jailed_workers_build_with_the_overlay_and_their_answers_are_kept_apart(
    wheels: Path, store: Store, tmp_path: Path
) -> None:
    job = Build(graph=add_graph(store, (4,)), target=CPU)
    folder = overlay.filled(PARSED, store.root, quiet)
    versions = []
    for overlays in ((), (folder,)):
        executor = local.open(local.Options(store=store.root, logs=tmp_path / "logs", overlay=overlays))
        try:
            done = Dispatch(store, executor)(job)
            versions.append(done.value.versions["onnxruntime"])  # type: ignore[union-attr]
        finally:
            executor.close()
    assert versions[0] != "1.99.0"
    assert versions[1] == "1.99.0"
