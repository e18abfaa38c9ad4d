"""Every name that our code takes from TensorRT exists in the bindings of 10.16 and of 11.4, and in RTX's.

The lists in tensorrt_api/ were asked of the real bindings (regenerate.py says how). A variable of the
code stands for one class of the bindings, as the table says; each attribute taken from it must be a
member of that class.
"""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from petra_deploy.worker.backends import (
    _cuda,
    _trt,
    _trt_build,
    _trt_lottery,
    _trt_profile,
    _trt_runner,
    _trt_vendor,
    tensorrt,
    tensorrt_rtx,
)

SHARED = (_trt, _trt_build, _trt_lottery, _trt_profile, _trt_runner, _trt_vendor, tensorrt)
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "e": "ParserError",
    "config": "IBuilderConfig", "profile": "IOptimizationProfile", "tensor": "ITensor", "timings": "ITimingCache",
    "context": "IExecutionContext", "engine": "ICudaEngine", "_engine": "ICudaEngine", "_runtime": "Runtime",
    "inspector": "EngineInspector",
}  # fmt: skip
RTX = {**CLASSES, "config": "IRuntimeConfig", "kernels": "IRuntimeCache", "strategy": "CudaGraphStrategy"}
OURS = {"_tensor", "tensor"}  # in _trt_runner a tensor is our own
Names = Mapping[str, list[str]]


def listed(version: str) -> Names:
    names: Names = json.loads((Path(__file__).parent / "tensorrt_api" / f"{version}.json").read_text())
    return names


def used(source: str, classes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(class, member) of every attribute taken from the package ("trt") or from an object of it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        base = node.value
        if isinstance(base, ast.Call):  # trt.Builder(log).create_builder_config
            base = base.func
        if isinstance(base, ast.Attribute) and _last(base.value) == "trt":
            yield base.attr, node.attr  # trt.BuilderFlag.TF32
        elif _last(base) == "trt":
            yield "", node.attr
        elif _last(base) in classes:
            yield classes[_last(base)], node.attr


def unknown(source: str, names: Names, classes: Mapping[str, str] = CLASSES) -> set[str]:
    return {
        f"{kind or 'trt'}.{member}"
        for kind, member in used(source, classes)
        if not member.startswith("__") and member not in names.get(kind, ()) and not (kind == "" and member in names)
    }


def _last(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def classes_of(module: object) -> dict[str, str]:
    return {name: kind for name, kind in CLASSES.items() if module is not _trt_runner or name not in OURS}


@pytest.mark.parametrize("version", ["10.16", "11.4"])
@pytest.mark.parametrize("module", SHARED, ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_name_taken_from_tensorrt_is_in_its_bindings(module: object, version: str) -> None:
    assert unknown(inspect.getsource(module), listed(version), classes_of(module)) == set()  # type: ignore[arg-type]


def test_the_walk_sees_what_it_should() -> None:
    seen = {pair for module in SHARED for pair in used(inspect.getsource(module), classes_of(module))}
    for pair in (
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("IBuilderConfig", "set_timing_cache"), ("", "Runtime"),
        ("IExecutionContext", "execute_async_v3"), ("ICudaEngine", "get_tensor_dtype"), ("ParserError", "node_name"),
        ("Runtime", "deserialize_cuda_engine"), ("Builder", "create_builder_config"), ("", "nptype"),
    ):  # fmt: skip
        assert pair in seen
    assert len(seen) > 40
    assert set(CLASSES.values()) <= {kind for kind, _ in seen}


def test_what_left_with_11_would_be_found() -> None:
    source = "config.int8_calibrator = 1\nconfig.set_flag(trt.BuilderFlag.FP16)\ntrt.Builder(log).platform_has_tf32"
    assert unknown(source, listed("10.16")) == set()
    assert unknown(source, listed("11.4")) == {
        "IBuilderConfig.int8_calibrator", "BuilderFlag.FP16", "Builder.platform_has_tf32"
    }  # fmt: skip


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_every_level_of_hardware_compatibility_is_one_of_theirs(version: str) -> None:
    levels = get_args(get_type_hints(_trt_build.Settings)["hardware"])
    assert {level.upper() for level in levels} - {"THIS"} <= set(listed(version)["HardwareCompatibilityLevel"])


def test_every_name_taken_from_tensorrt_rtx_is_in_the_package_here() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="its wheels are for Linux and Windows on x86-64")
    kinds = {name: kind for name, kind in vars(trt).items() if inspect.isclass(kind)}
    names = {name: dir(kind) for name, kind in kinds.items()} | {"": dir(trt)}
    for module in SHARED:
        assert unknown(inspect.getsource(module), names, classes_of(module)) == set()
    aim, rest = inspect.getsource(tensorrt_rtx._aim), inspect.getsource(tensorrt_rtx._contexts)
    assert unknown(aim, names) == unknown(rest, names, RTX) == set()


def test_every_call_of_cuda_exists_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="of the extras tensorrt and tensorrt-rtx")
    tree = ast.walk(ast.parse(inspect.getsource(_cuda)))
    asked = {n.attr for n in tree if isinstance(n, ast.Attribute) and n.attr.startswith("cuda")}
    assert len(asked) > 15
    members = {*dir(runtime), *dir(runtime.cudaMemcpyKind), *dir(runtime.cudaStreamCaptureMode)}
    assert asked <= members
