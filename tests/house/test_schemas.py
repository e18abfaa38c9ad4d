"""docs/schemas is what the types say, and docs/manifest.md explains every field."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import jsonschema
import pytest

from petra_deploy.core import files, profile
from petra_deploy.core.machine import targets
from petra_deploy.core.store import Store
from petra_deploy.core.target import Target
from petra_deploy.driver.bundle import manifest
from petra_deploy.driver.bundle.write import write
from petra_deploy.testing.schemas import KINDS, schema
from tests.shipments import make_shipment

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", KINDS)
def test_the_schema_on_disk_is_the_one_the_types_make(name: str) -> None:
    written = json.loads((DOCS / "schemas" / f"{name}.json").read_text())
    assert written == json.loads(schema(name)), "run: python -m petra_deploy.testing.schemas docs/schemas"


def test_a_written_bundle_satisfies_the_published_schemas(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    write(tmp_path / "bundle", make_shipment(store, tmp_path), store)
    for name in ("manifest", "strategy"):
        rules = json.loads((DOCS / "schemas" / f"{name}.json").read_text())
        jsonschema.validate(json.loads((tmp_path / "bundle" / f"{name}.json").read_text()), rules)


def test_every_shipped_target_satisfies_its_schema() -> None:
    rules = json.loads((DOCS / "schemas" / "target.json").read_text())
    for path in targets().values():
        import tomllib

        jsonschema.validate(files.plain(tomllib.loads(path.read_text())), rules)


def test_every_field_of_the_manifest_is_explained() -> None:
    text = (DOCS / "manifest.md").read_text()
    for kind in vars(manifest).values():
        if is_dataclass(kind) and kind.__module__ == manifest.__name__:
            for field in fields(kind):
                assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"


def test_every_field_of_a_profile_is_explained() -> None:
    text = (DOCS / "profiles.md").read_text()
    for kind in (
        profile.Profile,
        profile.EngineFacts,
        profile.Benched,
        profile.Scenario,
        profile.Tail,
        profile.ColdStart,
    ):
        for field in fields(kind):
            assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"


def test_every_field_of_a_target_is_explained() -> None:
    text = (DOCS / "targets.md").read_text()
    for field in fields(Target):
        assert f"`{field.name}`" in text, field.name


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_version_1_wrote_still_loads(name: str) -> None:
    """These files are never written again: whoever changes a type migrates them or makes a new version."""
    path = Path(__file__).with_name("files_of_version_1") / f"{name}.json"
    files.read_json(path, KINDS[name])
