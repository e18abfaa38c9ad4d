"""Check that a bundle is what its manifest says: every listed file there, and whole.

    manifest = verify(Path("petra-out/model/bundle"))

A checksum inside a bundle proves integrity, not origin: whoever can change a file can change
the manifest with it.
"""

from pathlib import Path

from petra_deploy.core import files
from petra_deploy.core.errors import BadInput, NotMet
from petra_deploy.core.store import digest_file
from petra_deploy.driver.bundle import recipe
from petra_deploy.driver.bundle.manifest import Manifest


def read_manifest(bundle: Path) -> Manifest:
    """Raises BadInput where `bundle` is no bundle, or one of a version that is not known."""
    path = bundle / "manifest.json"
    if not path.is_file():
        inside = bundle / "bundle"
        hint = f"did you mean {inside}?" if (inside / "manifest.json").is_file() else "give a folder with manifest.json"
        raise BadInput(f"{bundle} is not a bundle", hint)
    data = files.parse_json(path)
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, str) and schema != Manifest.schema:
        raise BadInput(
            f"{path} says it is {schema!r}; this version reads {Manifest.schema!r}",
            "install the version of petra-deploy that wrote it",
        )
    return files.decode(data, Manifest, str(path))


def verify(bundle: Path) -> Manifest:
    """The manifest of a sound bundle.

    Raises BadInput where it cannot be read, NotMet naming the files that are missing or changed,
    or that the manifest fails to list.
    """
    manifest = read_manifest(bundle)
    root = bundle.resolve()
    problems = []
    for name, expected in manifest.files.items():
        path = bundle / name
        if not path.resolve().is_relative_to(root):
            raise BadInput(f"{bundle / 'manifest.json'} names {name!r}, which lies outside the bundle")
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif digest_file(path) != expected:
            problems.append(f"{name} has changed")
    for needed in ("model.onnx", "strategy.json"):
        if needed not in manifest.files:
            problems.append(f"{needed} is not listed")
    if problems:
        raise NotMet(f"{bundle} is not as it was written: {'; '.join(problems)}", "copy or build the bundle again")
    recipe.read(bundle / "strategy.json")
    return manifest
