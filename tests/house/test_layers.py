"""Who may import whom: the contracts of pyproject.toml hold, and would notice a breach."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "petra_deploy"
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/strategy.py", "import petra_deploy.driver", "The house"),
        ("driver/report/table.py", "import torch", "neither torch nor a runtime"),
        ("worker/measure/__init__.py", "import torch", "without torch"),
        ("worker/context.py", "import optuna", "no search"),
        ("shed.py", "import json", "The house"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, contract: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "petra_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "petra_deploy" / file).open("a") as source:
        source.write(f"\n\ndef planted():\n    {line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert any(contract in said and "BROKEN" in said for said in done.stdout.splitlines()) or contract in done.stderr, (
        done.stdout
    )


@pytest.mark.parametrize("room", ["techniques", "backends"])
def test_extensions_of_a_kind_do_not_import_one_another(room: str) -> None:
    """What two of them share lies in a module whose name starts with an underscore."""
    prefix = f"petra_deploy.worker.{room}"
    for path in sorted((PACKAGE / "worker" / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == prefix:
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix + "."):
                named = [(node.module or "").removeprefix(prefix + ".")]
            else:
                continue
            assert all(name.startswith("_") for name in named), f"{path.name} imports {named}"
