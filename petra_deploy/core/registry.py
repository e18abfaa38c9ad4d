"""Extensions by name, found without importing them.

Ours are the modules of a folder; third parties' are entry points of group `petra_deploy.<kind>`
whose value is a module. A module whose name starts with an underscore is not an extension.

    names("technique")                      # ("drop_blocks", "prune", ...)
    find("technique", "prune")              # the module, imported now
"""

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

from petra_deploy.core.errors import BadInput

FOLDERS = {
    "technique": "petra_deploy.worker.techniques",
    "backend": "petra_deploy.worker.backends",
    "sampler": "petra_deploy.driver.search.samplers",
    "executor": "petra_deploy.driver.executors",
}


def modules(kind: str) -> dict[str, str]:
    """name -> module path, ours and third parties'. A clash is an error that names both."""
    package = FOLDERS[kind]
    folder = Path(__file__).resolve().parent.parent.joinpath(*package.split(".")[1:])
    found = {p.stem: f"{package}.{p.stem}" for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    for point in metadata.entry_points(group=f"petra_deploy.{kind}"):
        if point.name in found and found[point.name] != point.value:
            raise BadInput(
                f"two {kind}s are called {point.name!r}: {found[point.name]} and {point.value}",
                "uninstall one of the packages",
            )
        found[point.name] = point.value
    return found


def names(kind: str) -> tuple[str, ...]:
    return tuple(modules(kind))


def find(kind: str, name: str) -> Any:
    """The extension module. Raises BadInput naming those that exist."""
    known = modules(kind)
    if name not in known:
        raise BadInput(f"there is no {kind} called {name!r}", f"known: {', '.join(known)}")
    return importlib.import_module(known[name])
