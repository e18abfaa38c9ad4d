"""What starting costs: which packages the light paths load. No times are asserted, only modules."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "petra_deploy"
HEAVY = {"torch", "numpy", "optuna", "pydantic", "rich", "onnx", "onnxruntime", "sqlalchemy", "psutil"}
EXTRAS = ("tensorrt", "tensorrt_rtx", "openvino", "ray", "tritonclient", "pytest", "jsonschema", "otava")
WATCH = "import sys\n{code}\nprint(','.join(sorted({heavy!r} & set(sys.modules))))"


def loaded(code: str, heavy: set[str] = HEAVY) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(code=code, heavy=heavy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "line",
    ["--help", "--version", "optimize --help", "apply --help", "demo --help", "inspect --help", "verify --help",
     "refresh --help", "targets --help", "targets validate --help"],
)  # fmt: skip
def test_help_loads_nothing_heavy(line: str) -> None:
    assert loaded(f"from petra_deploy.cli.main import run; run({line.split()!r})") == ""


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import petra_deploy; petra_deploy.__version__; dir(petra_deploy)") == ""


def test_the_driver_never_loads_torch_or_a_runtime() -> None:
    code = "import petra_deploy.measuring, petra_deploy.runtime"
    assert loaded(code, {"torch", "onnx", "onnxruntime", "neural_compressor", "torch_pruning"}) == ""


@pytest.mark.parametrize("kind", ["build", "measure", "score", "infer"])
def test_the_jobs_that_serve_and_time_load_no_torch(kind: str) -> None:
    code = f"import petra_deploy.worker.jobs.{kind}, petra_deploy.worker.backends.onnxruntime"
    assert loaded(code, {"torch", "optuna", "neural_compressor"}) == ""


def test_every_module_imports_without_the_extras() -> None:
    names = [".".join(("petra_deploy", *path.relative_to(PACKAGE).with_suffix("").parts))
             for path in sorted(PACKAGE.rglob("*.py"))]  # fmt: skip
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    block = f"for name in {EXTRAS!r}: sys.modules[name] = None\n"  # as if it were not installed
    loaded(block + f"import importlib\nfor name in {names!r}: importlib.import_module(name)")


def test_public_names_resolve() -> None:
    import petra_deploy

    for name in petra_deploy.__all__:
        assert getattr(petra_deploy, name) is not None
    with pytest.raises(AttributeError, match="optimise"):
        petra_deploy.optimise  # noqa: B018
