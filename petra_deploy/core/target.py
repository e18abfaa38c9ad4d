"""A target: hardware plus runtime, as `targets/<name>.toml` describes it.

Nothing here is derived. The target `cpu` is this machine: its TOML says `detect = true` and
`core/machine.py` fills in the instruction set when the file is read. What a type cannot say of a
target (a source for each claim, peaks of listed precisions only) `core/catalogue.py` checks.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from petra_deploy.core.data import Data

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp4"]
Amount = Annotated[float, Gt(0), Lt(1e9)]


@dataclass(frozen=True, kw_only=True)
class Target(Data):
    name: str
    summary: str = ""
    runtime: str  # the backend's name
    device: Literal["cpu", "cuda"]
    device_name: str | None = None  # the driver's name of it, "*" for any letters: "NVIDIA H100 80GB HBM3"
    detect: bool = False  # this machine: instructions and memory are read from it
    precisions: tuple[Precision, ...] = ("fp32",)  # that the runtime has here
    other_runtimes: dict[str, tuple[Precision, ...]] = field(default_factory=dict)  # and their precisions
    runtime_versions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # ">=10,<11"; any range will do
    instructions: tuple[str, ...] = ()  # of a CPU: "avx2", "avx512", "vnni", "amx", "neon", "dotprod"
    channel_step: Annotated[int, Ge(1)] = 16  # widths that run fast in every precision are multiples of this
    channel_steps: dict[Precision, Annotated[int, Ge(1)]] = field(default_factory=dict)  # and in one precision
    threads: Annotated[int, Ge(1)] = 1  # intra-op threads of the served engine
    compute_capability: str | None = None
    sparsity: tuple[Literal["2:4"], ...] = ()
    memory_gb: Amount | None = None
    shared_memory: bool = False  # the device and the processor share it
    bandwidth_gb_s: Amount | None = None
    peaks_tflops: dict[Precision, Amount] = field(default_factory=dict)  # dense; of int8, tera operations
    power_w: Amount | None = None  # the most it draws
    price_per_hour_usd: Amount | None = None
    sources: dict[str, str] = field(default_factory=dict)  # figure -> where it is from

    @property
    def saturates(self) -> bool:
        """Whether 8-bit products of U8S8 kernels can saturate: x86 without VNNI (TRUST of int8)."""
        x86 = any(flag.startswith("avx") or flag == "sse4" for flag in self.instructions)
        return self.device == "cpu" and x86 and "vnni" not in self.instructions
