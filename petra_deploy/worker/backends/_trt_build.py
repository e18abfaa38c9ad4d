"""From an ONNX file to a plan: strongly typed, so that precision is what the graph's casts and Q/DQ say.

    built = compile(vendor, Path("model.onnx"), Settings(), timing=earlier)
    built.plan, built.timing            # bytes

Only what TensorRT 10 and 11 (and RTX) all have is used: weak typing, calibrators and per-layer precision
left with 11. What the parser or the compiler refuses is `Refused`, one sentence a node.
Source: TensorRT's Python API of 10.16 and 11.4, whose names are in tests/unit/worker/backends/tensorrt_api.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from petra_deploy.core.data import Data
from petra_deploy.core.errors import Problem
from petra_deploy.core.workload import BATCH
from petra_deploy.worker.backends._trt_vendor import Vendor, refused_node, sentence

Range = tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
ROWS: Range = (1, 16, 256)
_SHOWN = 4  # sentences in the reason of a Problem


@dataclass(frozen=True, kw_only=True)
class Settings(Data):
    optimization_level: Annotated[int, Ge(0), Le(5)] = 3  # how long the builder looks for fast kernels
    workspace_mb: Annotated[int, Ge(1)] | None = None  # memory that kernels may use; None: all there is
    tf32: bool = True  # FP32 products on Tensor Cores, with 10 bits of mantissa
    sparse: bool | None = None  # use 2:4 zeros of weights; None: where there are any, and the target skips them
    version_compatible: bool = False  # newer releases of the same major version open the plan too
    hardware: Literal["this", "same_compute_capability", "ampere_plus"] = "this"  # that opens the plan
    sizes: dict[str, Range] = field(default_factory=dict)  # of dynamic dimensions by name: least, best, most
    builds: Annotated[int, Ge(1), Le(20)] = 1  # plans built of the same graph; the fastest is kept
    cuda_graph: Literal["auto", "on", "off"] = "auto"  # one launch replays all; auto: where it can be captured
    threads: Annotated[int, Ge(1)] = 1  # every backend takes it; here nothing runs on the processor


@dataclass(frozen=True, kw_only=True)
class Built:
    plan: bytes
    timing: bytes  # of the kernels that were tried; empty where the builder times none
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ranges: dict[str, list[int]]  # dynamic dimension -> least, best, most
    layers: int


class Refused(Problem):
    """The graph is not accepted: a sentence for each node that is refused."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        more = f"; and {len(sentences) - _SHOWN} more" if len(sentences) > _SHOWN else ""
        super().__init__("unsupported", "; ".join(sentences[:_SHOWN]) + more)
        self.sentences = sentences


def compile(
    vendor: Vendor, model: Path, settings: Settings, *, capability: str | None = None, timing: bytes = b""
) -> Built:
    """Raises Refused, and Problem("unsupported") for a dynamic dimension whose range is not known.

    `capability`, like "8.9", is for a vendor that compiles ahead; without it the plan is for the device here.
    """
    trt, log = vendor.load()
    log.drain()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        told = (refused_node(e.node(), e.node_name(), e.node_operator(), e.desc(), vendor) for e in found)
        raise Refused(tuple(dict.fromkeys(told)) or _told(log, vendor))
    config = builder.create_builder_config()
    _configure(trt, config, settings, vendor)
    if capability is not None and vendor.aim is not None:
        vendor.aim(trt, config, capability)
    if vendor.times and not config.set_timing_cache(config.create_timing_cache(timing), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)  # of another device: timed afresh
    ranges = _profile(builder, config, network, settings.sizes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(_told(log, vendor))
    timings = config.get_timing_cache() if vendor.times else None
    return Built(
        plan=bytes(plan),
        timing=b"" if timings is None else bytes(timings.serialize()),
        inputs=tuple(network.get_input(index).name for index in range(network.num_inputs)),
        outputs=tuple(network.get_output(index).name for index in range(network.num_outputs)),
        ranges=ranges,
        layers=network.num_layers,
    )


def merged(vendor: Vendor, one: bytes, other: bytes) -> bytes:
    """Two timing caches of the same device and version as one; the other alone where they are not."""
    if not one or not other:
        return one or other
    trt, log = vendor.load()
    config = trt.Builder(log).create_builder_config()
    timings = config.create_timing_cache(one)
    if not timings.combine(config.create_timing_cache(other), False):
        return other
    return bytes(timings.serialize())


def _configure(trt: Any, config: Any, settings: Settings, vendor: Vendor) -> None:
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # a plan that says which nodes its layers are of
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    flags = {
        trt.BuilderFlag.TF32: settings.tf32,
        trt.BuilderFlag.SPARSE_WEIGHTS: bool(settings.sparse),
        trt.BuilderFlag.VERSION_COMPATIBLE: settings.version_compatible,
    }
    for flag, wanted in flags.items():
        (config.set_flag if wanted else config.clear_flag)(flag)
    if settings.hardware != "this":
        level = getattr(trt.HardwareCompatibilityLevel, settings.hardware.upper(), None)
        if level is None:  # the second came with a later release of 10
            raise Problem("unsupported", f"this {vendor.title} has no hardware compatibility {settings.hardware!r}")
        config.hardware_compatibility_level = level


def _profile(builder: Any, config: Any, network: Any, sizes: Mapping[str, Range]) -> dict[str, list[int]]:
    """Tell the builder between which sizes each dynamic dimension of the inputs lies; returns that by name."""
    profile, found = builder.create_optimization_profile(), dict[str, list[int]]()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise Problem("unsupported", f"the input {tensor.name!r} is a shape, which cannot be fed here")
        ranges: list[Range] = []
        for axis, size in enumerate(tensor.shape):
            if size >= 0:
                ranges.append((size, size, size))
                continue
            name = tensor.get_dimension_name(axis) or (BATCH if axis == 0 else f"{tensor.name}.{axis}")
            ranges.append(_range(name, axis, tensor.name, sizes))
            found[name] = list(ranges[-1])
        profile.set_shape(tensor.name, *zip(*ranges, strict=True) if ranges else ((), (), ()))
    if unknown := set(sizes) - set(found):
        raise Problem("input", f"no input has a dynamic dimension {sorted(unknown)[0]!r}",
                      f"it has {', '.join(found) or 'none'}")  # fmt: skip
    if found and config.add_optimization_profile(profile) < 0:
        raise Problem("unsupported", f"the sizes {found} are not accepted")
    return found


def _range(name: str, axis: int, tensor: str, sizes: Mapping[str, Range]) -> Range:
    if name in sizes:
        least, best, most = sizes[name]
        if not least <= best <= most:
            raise Problem("input", f"the sizes of {name!r} are {least}, {best}, {most}: they must not fall")
        return least, best, most
    if name == BATCH or axis == 0:
        return ROWS
    raise Problem(
        "unsupported",
        f"the dimension {name!r} of input {tensor!r} is dynamic, and its range is not known",
        f'give the backend\'s setting sizes, as {{"{name}": [1, 64, 512]}}: least, best, most; or export it fixed',
    )


def _told(log: Any, vendor: Vendor) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentence(message, vendor) for message in log.drain())) or (
        f"{vendor.title} refuses the graph and gives no reason",
    )
