"""Files stay small enough to be one idea, say first what they are for, and hold nothing of one machine."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "petra_deploy").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_above_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", [p for p in SOURCES if p.read_text().strip()], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_begins_with_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith(('"""', 'r"""'))


def test_the_stages_fit_on_a_screen_or_two() -> None:
    """Where branches for a format, a runtime or a technique would grow."""
    assert len((ROOT / "petra_deploy" / "driver" / "evaluate.py").read_text().splitlines()) <= 150
