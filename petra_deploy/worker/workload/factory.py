"""Import what the user names: "file.py:function" or "package.module:function".

Naming a file is trust in that file: it runs, and may import what lies beside it (its folder goes
to the end of the search path, so that it can hide no installed package). Nothing else is run.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from petra_deploy.core.errors import Problem
from petra_deploy.core.store import digest_file
from petra_deploy.worker.workload.words import one_line

_USUAL = (
    "model",
    "build",
    "build_model",
    "make_model",
    "create_model",
    "get_model",
    "make",
    "create",
    "net",
    "factory",
)


def absolute(spec: str) -> str:
    """The same spec with the file's whole path, so that another process finds it."""
    file, name = split(spec)
    return spec if file is None else f"{file}:{name}" if name else str(file)


def split(spec: str) -> tuple[Path | None, str]:
    """(file, name) of "file.py:name"; the file is None for "package.module:name"."""
    head, _, name = spec.rpartition(":")
    if not head:
        head, name = spec, ""
    if head.endswith(".py"):
        return Path(head).absolute(), name
    return None, name


def named(spec: str, option: str) -> Any:
    """The object that `spec` names. Raises Problem("input") where it cannot be had.

    `option` is the option that the user gave it by, for messages: "--model".
    """
    file, name = split(spec)
    if file is not None:
        module = import_file(file, option)
    elif name:
        module = _import_module(spec.rpartition(":")[0], option)
    else:
        raise Problem("input", f"{option} {spec} names no function", f"write {option} file.py:function")
    if not name:
        return _guess(module, spec, option)
    value: Any = module
    for part in name.split("."):
        inner = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if inner is None:
            has = ", ".join(sorted(_own(module))[:8]) or "nothing public"
            raise Problem("input", f"{spec.rpartition(':')[0]} has no {name}", f"it has {has}")
        if isinstance(value, type) and inspect.isfunction(inspect.getattr_static(value, part)):
            inner = getattr(_instance(value, spec), part)  # a method of a class like a workload.py's
        value = inner
    return value


def make_module(spec: str, option: str = "--model") -> torch.nn.Module:
    """The module that the named function or class gives, called without arguments."""
    return called(named(spec, option), spec, option)


def called(value: Any, spec: str, option: str = "--model") -> torch.nn.Module:
    if isinstance(value, torch.nn.Module):
        return value
    if not callable(value):
        raise Problem("input", f"{spec} is a {type(value).__name__}, not a function that makes a module")
    if needed := required(value):
        raise Problem(
            "input",
            f"{spec} needs the arguments {', '.join(needed)}",
            f"write a function without arguments that calls it, and give that as {option}",
        )
    try:
        torch.manual_seed(0)
        module = value()
    except (Exception, SystemExit) as error:
        raise Problem(
            "input", f"{spec} raised {one_line(error)}", "run it once by itself to see the whole error"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise Problem("input", f"{spec} returns a {type(module).__name__}, not a torch.nn.Module")
    return module


def required(function: Any) -> list[str]:
    """Names of parameters that a caller must give."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def import_file(file: Path, option: str) -> ModuleType:
    """The module of a Python file, run once per content."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise Problem("input", f"{option} {file} does not exist", "check the path") from None
    except OSError as error:
        raise Problem("input", f"{option} {file} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(str(file).encode() + b"\0" + text).hexdigest()[:12]
    name = f"petra_user_{file.stem}_{digest}".replace("-", "_").replace(".", "_")
    if name in sys.modules:
        return sys.modules[name]
    search(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise Problem("input", f"{option} {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = "run it once by itself to see the whole error"
        raise Problem("input", f"{file.name} raised {one_line(error, file)}", hint) from error
    return module


def search(folder: Path, *, first: bool = False) -> None:
    """Let Python import from `folder`, after everything installed unless `first`."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder)) if first else sys.path.append(str(folder))


def code_digests(folders: Iterable[str]) -> dict[str, str]:
    """{file: sha256} of all imported modules that lie in `folders`: the user's own code."""
    roots = [Path(folder) for folder in folders]
    found: dict[str, str] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or "site-packages" in file:
            continue
        path = Path(file)
        if any(root in path.parents for root in roots) and path.is_file():
            found[str(path)] = digest_file(path)
    return dict(sorted(found.items()))


def defines(file: Path, name: str) -> bool:
    """Whether a Python file has a class or function `name` at its top, by its text alone."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    return any(isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name for n in tree.body)


def _import_module(name: str, option: str) -> ModuleType:
    search(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "install it, run from the folder that holds it, or write the path of a .py file"
            raise Problem("input", f"{option} names the module {name}, which is not found", hint) from None
        raise Problem("input", f"importing {name} raised {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise Problem("input", f"importing {name} raised {one_line(error)}") from error


def _instance(kind: type[Any], spec: str) -> Any:
    if needed := required(kind):
        raise Problem("input", f"the class of {spec} needs the arguments {', '.join(needed)}", "let it take none")
    try:
        return kind()
    except (Exception, SystemExit) as error:
        raise Problem(
            "input", f"{spec} raised {one_line(error)}", "run it once by itself to see the whole error"
        ) from error


def _own(module: ModuleType) -> dict[str, Any]:
    """Public functions and classes that the module itself defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def _guess(module: ModuleType, spec: str, option: str) -> Any:
    """The one thing in a file that makes a module, where there is only one."""
    own = _own(module)
    usual = [name for name in _USUAL if name in own]
    classes = [n for n, v in own.items() if isinstance(v, type) and issubclass(v, torch.nn.Module) and not required(v)]
    names = usual[:1] or (classes if len(classes) == 1 else [])
    if not names:
        choices = ", ".join(f"{Path(spec).name}:{name}" for name in sorted(own)[:6]) or "a function that makes a module"
        raise Problem("input", f"{option} {spec} does not say which function makes the model", f"one of: {choices}")
    return own[names[0]]
