import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from petra_deploy.core import files
from petra_deploy.core.data import Data
from petra_deploy.core.errors import BadInput
from petra_deploy.core.outcome import Figure
from petra_deploy.core.strategy import Step, Strategy

STRATEGY = Strategy(steps=(Step(technique="prune", options={"ratios": {"conv": 0.5}}),), runtime={"threads": 1}, seed=7)


@dataclass(frozen=True, kw_only=True)
class Small(Data):
    sizes: tuple[int, ...]
    name: str = "x"


def test_a_strategy_comes_back_equal_from_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "strategy.json", STRATEGY)
    assert files.read_json(tmp_path / "strategy.json", Strategy) == STRATEGY


def test_the_same_data_has_the_same_bytes_whatever_its_order() -> None:
    assert files.canonical({"b": 1, "a": (1, 2)}) == files.canonical({"a": [1, 2], "b": 1})


def test_scalars_of_numpy_are_plain_and_nan_is_refused() -> None:
    assert files.plain({"a": np.float32(0.5), "b": (np.int64(3),)}) == {"a": 0.5, "b": [3]}
    with pytest.raises(ValueError):
        files.dumps(Figure(value=float("nan"), unit="ms"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"sizes": [1], "nmae": "y"}', "nmae"),
        ('{"sizes": ["many"]}', "sizes.0"),
        ('{"name": "y"}', "sizes"),
        ('{"sizes": [1', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00\xff", "not valid JSON"),
    ],
)
def test_a_wrong_file_names_itself_and_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        files.read_json(path, Small)
    assert "wrong.json" in caught.value.message


def test_a_missing_or_binary_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        files.read_json(tmp_path / "absent.json", Small)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        files.read_toml(tmp_path / "binary.toml", Small)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("inf")})
    assert files.parse_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_and_replaces_the_older(tmp_path: Path) -> None:
    final = tmp_path / "bundle"
    with files.new_folder(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
    with contextlib.suppress(RuntimeError), files.new_folder(final) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError
    assert (final / "a").read_text() == "1"
    with files.new_folder(final) as folder:
        (folder / "b").write_text("3")
    assert [p.name for p in final.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_only_temporaries_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead, living = tmp_path / ".a.999999999.tmp", tmp_path / f".b.{os.getpid()}.tmp"
    dead.mkdir()
    living.write_text("")
    files.remove_stale(tmp_path)
    assert not dead.exists()
    assert living.exists()


def test_targets_are_found_in_a_checkout() -> None:
    assert (files.shipped("targets") / "cpu.toml").is_file()
