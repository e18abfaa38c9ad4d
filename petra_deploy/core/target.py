"""A target: hardware plus runtime, as `targets/<name>.toml` describes it.

Nothing here is derived. The target `cpu` is this machine: its TOML says `detect = true` and
`core/machine.py` fills in the instruction set when the file is read.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from petra_deploy.core.data import Data

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp4"]


@dataclass(frozen=True, kw_only=True)
class Target(Data):
    name: str
    summary: str = ""
    runtime: str  # the backend's name
    device: Literal["cpu", "cuda"]
    detect: bool = False  # this machine: instructions and memory are read from it
    precisions: tuple[Precision, ...] = ("fp32",)
    instructions: tuple[str, ...] = ()  # of a CPU: "avx2", "avx512", "vnni", "amx", "neon", "dotprod"
    channel_step: Annotated[int, Ge(1)] = 16  # widths that run fast are multiples of this
    threads: Annotated[int, Ge(1)] = 1  # intra-op threads of the served engine
    compute_capability: str | None = None
    sparsity: tuple[str, ...] = ()  # "2:4"
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    peaks_tflops: dict[str, float] = field(default_factory=dict)  # per precision, dense
    power_w: float | None = None
    price_per_hour_usd: float | None = None
    sources: dict[str, str] = field(default_factory=dict)  # figure -> where it is from

    @property
    def saturates(self) -> bool:
        """Whether 8-bit products of U8S8 kernels can saturate: x86 without VNNI (TRUST of int8)."""
        x86 = any(flag.startswith("avx") or flag == "sse4" for flag in self.instructions)
        return self.device == "cpu" and x86 and "vnni" not in self.instructions
