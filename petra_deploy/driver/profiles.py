"""Profiles on disk: read one of any version, write one whole, find the engine that it is of.

profile = read(Path("profiles/cpu-vnni/digits-cnn.json"))
engine = subject_of(path, profile)              # the bundle or file it was made of; None where that has gone
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput
from petra_deploy.core.profile import Profile
from petra_deploy.core.store import digest_file

_NUMBERS = re.compile(r"\[\n([-+\d.eE,\s]+?)\n\s*\]")  # a list of them goes on one line
_KIND, _VERSION = "petra-deploy/profile", 1


def read(path: Path) -> Profile:
    """Raises BadInput saying what is wrong: damaged, of a later version, of another kind."""
    data = files.parse_json(path)
    schema = data.get("schema") if isinstance(data, dict) else None
    kind, _, version = str(schema).rpartition("/")
    if kind != _KIND:
        is_what = f"of schema {schema!r}" if schema else "no file of petra-deploy's"
        raise BadInput(f"{path} is not a profile: it is {is_what}",
                       "petra-deploy bench MODEL --save FILE.json writes one")  # fmt: skip
    if not version.isdigit() or int(version) > _VERSION:
        raise BadInput(f"{path} is a profile of version {version}; this petra-deploy reads up to {_VERSION}",
                       "upgrade petra-deploy, or record the profile anew")  # fmt: skip
    return files.decode(data, Profile, str(path))


def is_profile(path: Path) -> bool:
    return path.suffix == ".json"


def writable(path: Path) -> None:
    """Asked before a minute is spent. Raises BadInput where no profile can be written to `path`."""
    if not is_profile(path):
        raise BadInput(f"{path} is not the name of a profile", "name it like --save model.json")
    files.writable(path)


def write(path: Path, profile: Profile) -> None:
    """Atomically; `engine.file`, which is as the user named it, becomes relative to the profile's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = profile.engine.file
    here = os.path.relpath(named, path.parent).replace(os.sep, "/") if named else ""
    text = files.dumps(replace(profile, engine=replace(profile.engine, file=here)))
    files.write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def subject_of(path: Path, profile: Profile) -> Path | None:
    """The file or bundle that the profile at `path` was made of, unchanged; None where it is not there."""
    if not profile.engine.file:
        return None
    found = (path.parent / profile.engine.file).resolve()
    model = found / "model.onnx" if found.is_dir() else found
    return found if model.is_file() and digest_file(model) == profile.engine.sha256 else None
