import zipfile

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from petra_deploy.core.errors import Problem
from petra_deploy.worker.workload.sniff import sniff
from tests.unit.worker.workload.cases import Net, Touch, images, plain

torch.set_num_threads(1)


def small_onnx() -> bytes:
    inputs = [onnx.helper.make_tensor_value_info("x", 1, ["n", 2])]
    outputs = [onnx.helper.make_tensor_value_info("y", 1, ["n", 2])]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def test_forms_are_told_apart_whatever_the_name(tmp_path):
    file = tmp_path / "model.txt"
    torch.save(plain().state_dict(), file)
    assert (sniff(file).kind, sniff(file).scan.top) == ("torch", "dict")
    torch.save(plain(), file)
    assert sniff(file).scan.top == "object"
    torch.save(plain().state_dict(), file, _use_new_zipfile_serialization=False)
    assert (sniff(file).kind, sniff(file).scan.top) == ("legacy", "dict")
    torch.jit.save(torch.jit.script(plain()), str(file))
    assert sniff(file).kind == "torchscript"
    save_file(plain().state_dict(), file)
    assert sniff(file).kind == "safetensors"
    file.write_bytes(small_onnx())
    assert sniff(file).kind == "onnx"


def test_an_exported_program_is_told_by_its_archive(tmp_path):
    program = torch.export.export(plain(), (torch.randn(1, 1, 8, 8),))
    torch.export.save(program, tmp_path / "model.pt2")
    assert sniff(tmp_path / "model.pt2").kind == "exported"


def test_what_a_pickle_would_import_is_listed_and_not_imported(tmp_path):
    torch.save({"a": Touch(tmp_path / "canary")}, tmp_path / "m.pt")
    assert "posix.system" in sniff(tmp_path / "m.pt").scan.globals
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is no model\n", "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "gzip"),
        (bytes(range(256)) * 4, "no format that is known"),
        (b"\x80\x02}q\x00", "cut short"),
        (small_onnx()[:-10], "cut short"),
    ],
)
def test_bad_files_are_named(tmp_path, content, said):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(Problem, match=said) as caught:
        sniff(tmp_path / "m.pt")
    assert caught.value.kind == "input"
    assert "Traceback" not in caught.value.reason


def test_a_truncated_archive_is_said_to_be_cut_short(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "m.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(Problem, match="cut short"):
            sniff(tmp_path / "m.pt")


def test_data_around_an_archive_is_refused(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for content in (b"#!/bin/sh\n" + whole, whole + b"trailing", small_onnx() + whole):
        (tmp_path / "m.pt").write_bytes(content)
        with pytest.raises(Problem, match=r"other data|cut short|two formats"):
            sniff(tmp_path / "m.pt")


def test_an_archive_with_the_marks_of_two_formats_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(plain()), str(tmp_path / "m.pt"))
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        archive.writestr("m/archive_format", "pt2")
    with pytest.raises(Problem, match="several formats"):
        sniff(tmp_path / "m.pt")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/data/0", bytes(200 << 20))
    with pytest.raises(Problem, match="would unpack to"):
        sniff(tmp_path / "m.pt")


def test_npz_and_torch_package_are_named(tmp_path):
    np.savez(tmp_path / "m.npz", **images())
    with pytest.raises(Problem, match="npz archive: data"):
        sniff(tmp_path / "m.npz")
    with torch.package.PackageExporter(str(tmp_path / "p.pt")) as package:
        package.extern("**")
        package.save_pickle("model", "model.pkl", Net())
    with pytest.raises(Problem, match=r"torch\.package"):
        sniff(tmp_path / "p.pt")


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(Problem, match="does not exist"):
        sniff(tmp_path / "none.pt")
    with pytest.raises(Problem, match="is a folder"):
        sniff(tmp_path)
