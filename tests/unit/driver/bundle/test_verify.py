import json
from pathlib import Path

import pytest

from petra_deploy.core.errors import BadInput, NotMet
from petra_deploy.core.store import Store
from petra_deploy.driver.bundle.verify import verify
from petra_deploy.driver.bundle.write import Shipment, write


@pytest.fixture
def bundle(shipment: Shipment, store: Store, tmp_path: Path) -> Path:
    write(tmp_path / "out" / "bundle", shipment, store)
    return tmp_path / "out" / "bundle"


def test_a_bundle_as_written_is_sound(bundle: Path) -> None:
    assert verify(bundle).target.name == "cpu"


def test_one_flipped_bit_is_found(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(NotMet, match=r"model\.onnx has changed"):
        verify(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "example.py").unlink()
    with pytest.raises(NotMet, match=r"example\.py is missing"):
        verify(bundle)


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_manifest_of_the_future_is_said_to_be_one(bundle: Path) -> None:
    edit(bundle, schema="petra-deploy/manifest/9")
    with pytest.raises(BadInput, match="manifest/9"):
        verify(bundle)


def test_an_unknown_field_is_refused(bundle: Path) -> None:
    edit(bundle, run_me="rm -rf")
    with pytest.raises(BadInput, match="run_me"):
        verify(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_may_not_point_outside_its_folder(bundle: Path, name: str) -> None:
    edit(bundle, files={name: "0" * 64})
    with pytest.raises(BadInput, match="outside"):
        verify(bundle)


def test_an_engine_that_the_manifest_leaves_out_is_noticed(bundle: Path) -> None:
    edit(bundle, files={})
    with pytest.raises(NotMet, match=r"model\.onnx is not listed"):
        verify(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 3}', "[" * 100_000])
def test_a_torn_manifest_is_refused_with_its_path(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        verify(bundle)


def test_a_run_folder_is_not_a_bundle_but_the_hint_knows_where_it_is(bundle: Path) -> None:
    with pytest.raises(BadInput, match="is not a bundle") as caught:
        verify(bundle.parent)
    assert str(bundle) in caught.value.hint
