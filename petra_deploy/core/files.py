"""The one reader and writer of our own files: JSON and TOML, checked against the types.

    strategy = read_json(path, Strategy)        # BadInput names the file, the place and the cause
    write_json(path, strategy)                  # whole or not at all, durable

Types are the frozen dataclasses of `core`; pydantic validates them here and in the worker's main,
nowhere else. Unknown keys are refused. Nothing is ever read as a pickle.
"""

import contextlib
import functools
import json
import os
import shutil
import tomllib
from collections.abc import Hashable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from petra_deploy.core.errors import BadInput

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@functools.cache
def adapter(kind: type[Any]) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def plain(value: Any) -> Any:
    """`value` as JSON-able data: dataclasses become objects, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {k: plain(v) for k, v in asdict(value).items()}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # a numpy scalar
        return value.item()
    return value


def dumps(value: Any, *, indent: int | None = 1) -> str:
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def canonical(value: Any) -> bytes:
    """The same bytes for the same data: sorted keys, no spaces. What keys are hashed from."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(data: Any, kind: type[T], where: str) -> T:
    """`data` (parsed JSON or TOML) as `kind`.

    Raises BadInput with every error and its place; `where` names the file or sender.
    """
    from pydantic import ValidationError

    try:
        value: T = adapter(cast(Hashable, kind)).validate_python(data)
        return value
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg'].lower()}" for e in error.errors()[:5]
        )
        raise BadInput(f"{where} is not a valid {kind.__name__}: {problems}") from None


def read_json(path: Path, kind: type[T]) -> T:
    return decode(parse_json(path), kind, str(path))


def parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not valid JSON: {error.msg} at line {error.lineno}") from None
    except RecursionError:
        raise BadInput(f"{path} is nested too deeply") from None


def read_toml(path: Path, kind: type[T]) -> T:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from None
    return decode(data, kind, str(path))


def write_json(path: Path, value: Any) -> None:
    write_text(path, dumps(value) + "\n")


def write_toml(path: Path, value: Any) -> None:
    """The fields of a dataclass that are not empty, then its tables."""
    fields = {name: field for name, field in plain(value).items() if field not in (None, "", [], {}, False)}
    lines = [f"{name} = {_toml(field)}" for name, field in fields.items() if not isinstance(field, dict)]
    for name, table in fields.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(entry)}" for key, entry in table.items())]
    write_text(path, "\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    """Text, numbers, booleans and lists of them are written in TOML as in JSON, but for DEL."""
    return json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f")


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all: a temporary name in the same folder, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def writable(path: Path) -> None:
    """Asked before minutes are spent on what goes there. Raises BadInput where no file can be written to `path`."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{path} cannot be written", "name a file in a folder of yours")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `final`; on leaving it becomes `final`, whole.

    An older `final` is replaced. On an exception nothing is left behind.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            if path.is_symlink():
                continue
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        if final.exists():
            old = final.with_name(f".{final.name}.{os.getpid()}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
            os.rename(temporary, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(temporary, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Remove temporaries whose writer is dead (their names carry its pid)."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.removesuffix(".tmp").removesuffix(".old").rsplit(".", 1)[-1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def shipped(name: str) -> Path:
    """The folder `targets` or `profiles`: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name
