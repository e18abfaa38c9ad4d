import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import petra_deploy
from petra_deploy.core import cpus, files, machine
from petra_deploy.core.errors import BadInput, MissingExtra, NotMet, TargetAbsent
from petra_deploy.core.machine import installed
from petra_deploy.core.outcome import Certified, OnCpu
from petra_deploy.core.store import Store
from petra_deploy.driver.bundle.manifest import Manifest
from petra_deploy.driver.bundle.write import Shipment, write
from tests.shipments import make_shipment


@pytest.fixture
def bundle(shipment: Shipment, store: Store, tmp_path: Path) -> Path:
    write(tmp_path / "bundle", shipment, store)
    return tmp_path / "bundle"


ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.ones((2, 1, 8), np.float32)
KIND = np.array([0, 5])
EXPECTED = np.array([[[84, 92, 100]], [[89, 97, 105]]], np.float32)


def test_outputs_come_by_name_or_in_order(bundle: Path) -> None:
    with petra_deploy.load_bundle(bundle) as opened:
        np.testing.assert_allclose(opened.run({"kind": KIND, "image": IMAGE})["output"], EXPECTED)
        np.testing.assert_allclose(opened(IMAGE, KIND)[0], EXPECTED)
        assert opened.manifest.seed == 7
    opened.close()


@pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")
def test_a_bundle_opens_with_its_own_runtime_or_names_the_extra(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle", make_shipment(store, tmp_path, "openvino"), store)
    with petra_deploy.load_bundle(tmp_path / "bundle") as opened:
        assert opened.manifest.runtime.name == "openvino"
        np.testing.assert_allclose(opened(IMAGE, KIND)[0], EXPECTED)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="OpenVINO is not installed") as caught:
        petra_deploy.load_bundle(tmp_path / "bundle")
    assert "petra-deploy[openvino]" in caught.value.hint


def test_lists_and_narrower_or_wider_numbers_of_the_same_kind_are_taken(bundle: Path) -> None:
    with petra_deploy.load_bundle(str(bundle)) as opened:
        got = opened.run({"image": IMAGE.astype(np.float64), "kind": [0, 5]})
        np.testing.assert_allclose(got["output"], EXPECTED)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"image": IMAGE}, "kind"),
        ({"image": IMAGE, "kind": KIND, "mask": KIND}, "mask"),
        ({"image": IMAGE, "kind": KIND.astype(np.float32)}, "'kind' is float32"),
        ({"image": IMAGE[:, :, :7], "kind": KIND}, r"'image' has shape \(2, 1, 7\)"),
        ({"image": IMAGE[0], "kind": KIND}, "has shape"),
    ],
)
def test_wrong_inputs_are_named(bundle: Path, inputs: dict[str, np.ndarray], said: str) -> None:
    with petra_deploy.load_bundle(bundle) as opened, pytest.raises(BadInput, match=said):
        opened.run(inputs)


def test_a_changed_engine_is_not_opened(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"something else")
    with pytest.raises(NotMet, match="has changed"):
        petra_deploy.load_bundle(bundle)


def test_serving_needs_no_torch(bundle: Path) -> None:
    code = "import sys, petra_deploy; petra_deploy.load_bundle(sys.argv[1]).close(); "
    code += "print(sorted({'torch', 'optuna', 'onnx', 'cmaes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_serving_leaves_nothing_in_the_users_home(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime from 1.31 on keeps an identifier and reports its use there, unless it is told not to."""
    home = tmp_path / "home"
    home.mkdir()
    code = f"import petra_deploy as p; b = p.load_bundle({str(bundle)!r}); print(len(b.manifest.inputs)); b.close()"
    away = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    subprocess.run([sys.executable, "-c", code], env=away | {"HOME": str(home)}, check=True, cwd=ROOT)
    subprocess.run([sys.executable, str(bundle / "example.py")], env=away | {"HOME": str(home)}, check=True)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_processor_that_the_manifest_does_not_name_is_warned_of(
    shipment: Shipment, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    found = {name: OnCpu(holds=name in cpus.EXACT, why="it falls") for name in cpus.CPUS}
    certified = Certified(cpus=found, rows=9, metric="accuracy", allowed_points=0.0)
    write(tmp_path / "bundle", replace(shipment, certified=certified), store)
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2", "vnni"))
    petra_deploy.load_bundle(tmp_path / "bundle").close()
    assert not recwarn.list
    monkeypatch.setattr(machine, "instructions", lambda: ("avx2",))
    with pytest.warns(UserWarning, match=r"not to hold on this processor \(avx2\)"):
        petra_deploy.load_bundle(tmp_path / "bundle").close()


def test_a_bundle_for_a_gpu_that_was_not_there_is_served_by_the_gpu_where_there_is_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = files.read_json(bundle / "manifest.json", Manifest)
    t4 = replace(manifest.target, name="t4", runtime="tensorrt", device="cuda")
    files.write_json(bundle / "manifest.json", replace(manifest, target=t4))
    monkeypatch.setattr(machine, "cuda_devices", tuple)
    with pytest.warns(UserWarning, match="for t4, which is not here: it runs on the processor"):
        petra_deploy.load_bundle(bundle).close()
    monkeypatch.setattr(machine, "cuda_devices", lambda: (machine.CudaDevice("Tesla T4", "7.5", 1 << 34),))
    if not installed("tensorrt"):
        with pytest.raises(
            (MissingExtra, TargetAbsent), match=r"cannot be opened: TensorRT (is not installed|runs on)"
        ):
            petra_deploy.load_bundle(bundle)  # which of the two is looked for first depends on what is installed


def test_on_the_gpu_onnxruntime_is_told_to_use_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predicted bundle's own settings are those of the processor that stood in."""
    manifest = files.read_json(bundle / "manifest.json", Manifest)
    h200 = replace(manifest.target, name="h200", runtime="onnxruntime", device="cuda")
    files.write_json(bundle / "manifest.json", replace(manifest, target=h200))
    monkeypatch.setattr(machine, "cuda_devices", lambda: (machine.CudaDevice("NVIDIA H200", "9.0", 1 << 37),))
    if not installed_with_cuda():
        with pytest.raises(MissingExtra, match="no CUDAExecutionProvider"):
            petra_deploy.load_bundle(bundle)


def installed_with_cuda() -> bool:
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
