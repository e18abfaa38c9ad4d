"""Files by content: entries are folders that never change, answers are small JSON beside them.

    key = store.add(lambda folder: (folder / "model.onnx").write_bytes(data))
    path = store.path(key) / "model.onnx"

An entry's key is the sha256 of its files' names and bytes, so equal content is kept once and a
key can be trusted. Publication is atomic: a temporary folder, fsync, rename. The store is private
to its user (mode 0700).
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput


def default_root() -> Path:
    """`PETRA_CACHE_DIR`, else `petra-deploy` in the user's cache folder (XDG)."""
    if chosen := os.environ.get("PETRA_CACHE_DIR"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "petra-deploy"
    except RuntimeError:
        raise BadInput("no home folder for the cache", "set PETRA_CACHE_DIR to a writable folder") from None


def digest_file(path: Path) -> str:
    """sha256 of the bytes of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(path: Path) -> str:
    """sha256 over relative names and contents of a folder's files (or of one file)."""
    if path.is_file():
        return digest_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{digest_file(file)}\n".encode())
    return digest.hexdigest()


class Store:
    """Entries and answers under one root folder; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for folder in (root, root / "entries", root / "answers", root / "tmp"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"the cache folder {root} cannot be written: {error.strerror}",
                "set PETRA_CACHE_DIR to a writable folder",
            ) from None

    def path(self, key: str) -> Path:
        """The folder of an entry. Raises KeyError when it is not (or no longer) here."""
        folder = self.root / "entries" / key
        if not folder.is_dir():
            raise KeyError(f"no entry {key[:12]} in the cache {self.root}")
        return folder

    def __contains__(self, key: str) -> bool:
        return (self.root / "entries" / key).is_dir()

    def add(self, fill: Callable[[Path], object]) -> str:
        """Let `fill` write into a new folder, then publish it; returns its key."""
        temporary = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.root / "tmp"))
        try:
            fill(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    handle = os.open(file, os.O_RDONLY)
                    os.fsync(handle)
                    os.close(handle)
            key = digest_tree(temporary)
            final = self.root / "entries" / key
            with contextlib.suppress(FileExistsError, OSError):
                if not final.exists():
                    os.rename(temporary, final)
                    files.sync_folder(final.parent)
            if not final.is_dir():
                raise OSError(f"could not publish {key} in {self.root}")
            os.utime(final)
            return key
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def scratch(self) -> Path:
        """A new empty folder for work; the caller removes it (stale ones go at start-up)."""
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.root / "tmp"))

    def answer(self, key: str) -> Path:
        """Where the answer of the job with this key lies, or would lie."""
        return self.root / "answers" / f"{key}.json"

    def clean(self, *, most_bytes: int = 20 << 30, older_than_days: float = 30.0) -> None:
        """Remove work of dead processes, and the longest unused entries above `most_bytes`."""
        for folder in (self.root / "tmp").iterdir():
            pid = folder.name.split("-", 1)[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)
        files.remove_stale(self.root / "answers")
        now = time.time()
        entries = sorted((self.root / "entries").iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        total = 0
        for entry in entries:
            total += sum(p.stat().st_size for p in entry.rglob("*") if p.is_file())
            old = now - entry.stat().st_mtime > older_than_days * 86400
            if old or (total > most_bytes and now - entry.stat().st_mtime > 86400):
                shutil.rmtree(entry, ignore_errors=True)
