import os
import stat
import threading
from pathlib import Path

import pytest

from petra_deploy.core.errors import BadInput
from petra_deploy.core.store import Store, default_root, digest_tree


def test_equal_content_is_kept_once_under_a_key_made_of_it(store: Store) -> None:
    def fill(folder: Path) -> None:
        (folder / "a.txt").write_text("same")

    first, second = store.add(fill), store.add(fill)
    assert first == second == digest_tree(store.path(first))
    assert (store.path(first) / "a.txt").read_text() == "same"
    assert len(list((store.root / "entries").iterdir())) == 1


def test_a_name_is_part_of_the_content(store: Store) -> None:
    assert store.add(lambda f: (f / "a").write_text("x")) != store.add(lambda f: (f / "b").write_text("x"))


def test_an_entry_that_fails_half_way_leaves_nothing(store: Store) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        store.add(fill)
    assert not list((store.root / "entries").iterdir())
    assert not list((store.root / "tmp").iterdir())


def test_several_writers_of_one_entry_all_get_its_key(store: Store) -> None:
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(store.add(lambda f: (f / "a").write_text("x" * 10_000))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_is_not_here_is_a_key_error(store: Store) -> None:
    assert "0" * 64 not in store
    with pytest.raises(KeyError, match="no entry"):
        store.path("0" * 64)


def test_the_cache_is_private_and_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        Store(tmp_path / "file" / "cache")


def test_the_variable_decides_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETRA_CACHE_DIR", str(tmp_path / "here"))
    assert default_root() == tmp_path / "here"


def test_cleaning_removes_work_of_the_dead_and_old_entries_only(store: Store) -> None:
    new, old = store.add(lambda f: (f / "a").write_text("new")), store.add(lambda f: (f / "a").write_text("old"))
    os.utime(store.path(old), (0, 0))
    dead, living = store.root / "tmp" / "999999999-x", store.scratch()
    dead.mkdir()
    store.clean()
    assert new in store
    assert old not in store
    assert not dead.exists()
    assert living.exists()
