"""Which commit benchmarks/self.py holds this version against, in real repositories of a few commits."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "self.py"
Git = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_self", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def git(tmp_path: Path) -> Git:
    def run(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "-q", "-b", "main")
    for number in range(3):
        (tmp_path / "file").write_text(str(number))
        run("add", "file")
        run("commit", "-q", "-m", f"commit {number}")
    return run


def test_the_last_release_is_the_nearest_version_tag_before_this_commit(script: ModuleType, git: Git) -> None:
    git("tag", "v0.1.0", "HEAD~2")
    git("tag", "nightly", "HEAD~1")
    assert script.base() == ("v0.1.0", "the last release")
    git("tag", "v0.2.0")
    assert script.base() == ("v0.1.0", "the last release")  # a release is held against the one before
    git("commit", "-q", "--allow-empty", "-m", "after it")
    assert script.base() == ("v0.2.0", "the last release")


def test_without_a_release_it_is_where_the_branch_left_main(script: ModuleType, git: Git) -> None:
    fork = git("rev-parse", "HEAD")
    git("switch", "-q", "-c", "change")
    git("commit", "-q", "--allow-empty", "-m", "a change")
    ref, why = script.base()
    assert ref == fork
    assert "no release yet" in why


def test_on_main_it_is_the_commit_before_or_the_last_one_under_changes(
    script: ModuleType, git: Git, tmp_path: Path
) -> None:
    assert script.base()[0] == git("rev-parse", "HEAD^")
    (tmp_path / "file").write_text("changed")
    assert script.base()[0] == git("rev-parse", "HEAD")


def test_the_base_is_unpacked_as_it_was_committed(script: ModuleType, git: Git, tmp_path: Path) -> None:
    script.unpack("HEAD~1", tmp_path / "base")
    assert (tmp_path / "base" / "file").read_text() == "1"
