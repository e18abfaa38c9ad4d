"""A target: hardware plus runtime, as `targets/<name>.toml` describes it.

Nothing here is derived. The target `cpu` is this machine: its TOML says `detect = true` and
`core/machine.py` fills in the instruction set when the file is read. What a type cannot say of a
target (a source for each claim, peaks of listed precisions only) `core/catalogue.py` checks.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Lt

from petra_deploy.core.data import Data

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp4"]
Amount = Annotated[float, Gt(0), Lt(1e9)]
Computing = Literal[  # operators that multiply and accumulate; a convolution of larger kernels is "conv"
    "fp32.conv", "fp32.conv1x1", "fp32.depthwise", "fp32.matmul", "fp32.recurrent",
    "int8.conv", "int8.conv1x1", "int8.depthwise", "int8.matmul", "int8.recurrent",
]  # fmt: skip
Moving = Literal[  # whose bytes: of layers (weights, states at each step, activations, kernels' windows), and of others
    "weights", "states", "fp32.activations", "int8.activations", "fp32.gathered", "int8.gathered",
    "fp32.elementwise", "int8.elementwise", "curved", "moved", "converted",
]  # fmt: skip
Starting = Literal[  # a call, an operator without weights, one with, a step of a recurrent layer
    "call", "fp32", "int8", "fp32.layer", "int8.layer", "fp32.step", "int8.step",
]  # fmt: skip


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
    attained_gops: dict[Computing, Amount] = field(default_factory=dict)  # measured: 10^9 operations/s, two a MAC
    attained_gb_s: dict[Moving, Amount] = field(default_factory=dict)  # read and written
    operator_us: dict[Starting, Amount] = field(default_factory=dict)  # to start it
    power_w: Amount | None = None  # the most it draws
    price_per_hour_usd: Amount | None = None
    sources: dict[str, str] = field(default_factory=dict)  # figure -> where it is from

    @property
    def attained(self) -> bool:
        """Whether all rates that a prediction takes were measured."""
        return bool(self.attained_gops) and not self.missing_rates

    @property
    def missing_rates(self) -> tuple[str, ...]:
        """Those without which the others cannot be used; empty where there are none at all."""
        tables = (("attained_gops", Computing), ("attained_gb_s", Moving), ("operator_us", Starting))
        if not any(getattr(self, name) for name, _ in tables):
            return ()
        return tuple(
            f"{name}.{key}" for name, keys in tables for key in get_args(keys) if key not in getattr(self, name)
        )

    @property
    def saturates(self) -> bool:
        """Whether 8-bit products of U8S8 kernels can saturate: x86 without VNNI (TRUST of int8)."""
        x86 = any(flag.startswith("avx") or flag == "sse4" for flag in self.instructions)
        return self.device == "cpu" and x86 and "vnni" not in self.instructions
