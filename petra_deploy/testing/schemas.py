"""JSON Schemas of our own files, made of the types themselves.

    python -m petra_deploy.testing.schemas docs/schemas        # write them again after a change

`tests/house/test_schemas.py` fails where docs/schemas and the types disagree.
"""

import json
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

from petra_deploy.core import files
from petra_deploy.core.comparison import Comparison
from petra_deploy.core.ledger import Ledger
from petra_deploy.core.profile import Profile
from petra_deploy.core.request import Request
from petra_deploy.core.target import Target
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.recipe import Recipe

KINDS: Mapping[str, type[Any]] = {
    "manifest": Manifest,  # bundle/manifest.json
    "strategy": Recipe,  # bundle/strategy.json
    "run": Request,  # run.json
    "target": Target,  # targets/<name>.toml
    "ledger": Ledger,  # profiles/<target>/ledger.json
    "profile": Profile,  # profiles/<target>/<name>.json, of bench --save
    "comparison": Comparison,  # of compare
}


def schema(name: str) -> str:
    """The JSON Schema (draft 2020-12) of files of this name, as text."""
    made = files.adapter(cast(Hashable, KINDS[name])).json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"petra-deploy/schemas/{name}.json"}
    return json.dumps({**head, **made}, indent=1) + "\n"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        files.write_text(folder / f"{name}.json", schema(name))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas"))
