"""A model repository that Triton Inference Server loads as it is.

    triton/<model>/config.pbtxt
    triton/<model>/1/model.onnx          # docker run ... tritonserver --model-repository=/triton

With a dynamic batch the server batches requests itself (`dynamic_batching`), and `dims` leave the
batch out, as Triton wants it; otherwise `max_batch_size` is 0 and `dims` are the whole shape.
Sources: Triton's model_config.proto; the README of its onnxruntime backend for `parameters`, the graph
level (there 2 means that all optimizations are off) and the TensorRT accelerator; the README of its
openvino backend, which wants each request at `max_batch_size` exactly: there it is 0, and nothing is batched.
"""

import re
from collections.abc import Mapping

from petra_deploy.core.errors import BadInput
from petra_deploy.core.target import Target
from petra_deploy.core.workload import Signature, TensorSpec

MAX_BATCH = 64
_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}  # fmt: skip
_LEVELS = {"none": 2, "basic": -1, "extended": 1, "all": None}  # settings of worker/backends/onnxruntime.py


def model_name(name: str) -> str:
    """`name` as a folder and URL part: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-") or "model"


def config(
    name: str, signature: Signature, target: Target, settings: Mapping[str, object], *, int8: bool = False
) -> str:
    """The text of config.pbtxt; `int8` says whether the graph has Q/DQ pairs, which TensorRT must be told.

    Raises BadInput for a dtype that Triton has no name for, and a scalar input of its openvino backend.
    """
    openvino = target.runtime == "openvino"
    if openvino and any(not spec.shape for spec in signature.inputs):
        raise BadInput("Triton's openvino backend takes no scalar input")
    batched = not openvino and all(
        bool(spec.shape) and isinstance(spec.shape[0], str) for spec in (*signature.inputs, *signature.outputs)
    )
    kind = "KIND_GPU" if target.device == "cuda" else "KIND_CPU"
    lines = [
        f"name: {_quoted(name)}",
        f'backend: "{"openvino" if openvino else "onnxruntime"}"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
        *_tensors("input", signature.inputs, batched),
        *_tensors("output", signature.outputs, batched),
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    if batched:
        lines.append("dynamic_batching { }")
    if target.device == "cuda":
        lines += _accelerator(signature, target, batched, int8)
        return "\n".join(lines) + "\n"
    if openvino:
        return "\n".join([*lines, *_parameters(_openvino(target, settings))]) + "\n"
    level = _LEVELS.get(str(settings.get("optimization", "all")))
    if level is not None:
        lines.append(f"optimization {{ graph {{ level: {level} }} }}")
    parameters = {
        "intra_op_thread_count": settings.get("threads") or target.threads,
        "inter_op_thread_count": 1,
        "execution_mode": 1 if settings.get("execution_mode") == "parallel" else 0,
        "enable_mem_arena": 1 if settings.get("arena", True) else 0,
    }
    return "\n".join([*lines, *_parameters(parameters)]) + "\n"


def _parameters(values: Mapping[str, object]) -> list[str]:
    return [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()]


def _openvino(target: Target, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings of worker/backends/openvino.py in the words of Triton's backend."""
    found = {
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": settings.get("threads") or target.threads,
    }
    return {**found, "HINT_BF16": "YES"} if settings.get("precision") == "bf16" else found


def _accelerator(signature: Signature, target: Target, batched: bool, int8: bool) -> list[str]:
    """ONNX Runtime with TensorRT: it builds its engine at the first load and keeps it in the cache."""
    if target.runtime != "tensorrt":
        return []
    options = {
        "precision_mode": "INT8" if int8 else "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp/trt_cache",
        "trt_timing_cache_enable": "1",
    }
    if batched and all(not isinstance(size, str) for spec in signature.inputs for size in spec.shape[1:]):
        for part, rows in (("min", 1), ("opt", 16), ("max", MAX_BATCH)):
            shapes = (f"{spec.name}:{'x'.join(map(str, (rows, *spec.shape[1:])))}" for spec in signature.inputs)
            options[f"trt_profile_{part}_shapes"] = ",".join(shapes)
    entries = [f"    parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}" for key, value in options.items()]
    head = "optimization { execution_accelerators { gpu_execution_accelerator: [ {"
    return [head, '    name: "tensorrt"', *entries, "} ] } }"]


def shortfalls(runtime: str, settings: Mapping[str, object]) -> tuple[str, ...]:
    """What of `settings` Triton cannot be told: there the engine may be slower than measured."""
    if runtime == "openvino":
        return (
            "the Triton repository asks for its openvino backend, which is beta, does not batch requests here, and "
            "cannot be told to compute in FP32 where the processor has bf16; it has not been tried",
        )
    switched_off = settings.get("disabled_optimizers")
    names = ", ".join(map(str, switched_off)) if isinstance(switched_off, list | tuple) else ""
    return (f"Triton cannot switch off {names}: there this engine may be slower than measured",) if names else ()


def _tensors(role: str, specs: tuple[TensorSpec, ...], batched: bool) -> list[str]:
    entries = []
    for spec in specs:
        if spec.dtype not in _TYPES:
            raise BadInput(f"Triton has no type for {spec.dtype}, that of {spec.name!r}")
        shape = [-1 if isinstance(dim, str) else dim for dim in spec.shape[1 if batched else 0 :]]
        dims = f"dims: [ {', '.join(map(str, shape or [1]))} ]"
        if not shape:  # Triton's dims may not be empty
            dims += " reshape { shape: [ ] }"
        entries.append(f"  {{ name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} {dims} }}")
    return [f"{role} [", ",\n".join(entries), "]"]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
