"""Kinds of processor by how they add 8-bit products, and on which of them a bundle's accuracy holds.

    kind(machine.instructions())            # "vnni": of this machine
    alike("avx512")                         # ("avx2", "avx512"): the same integers come out there

x86 without VNNI adds pairs of products in 16 bits, which saturate (`worker/artifact/saturation.py`);
VNNI, AMX and 64-bit Arm add all of them in 32 bits, exactly.
"""

from collections.abc import Collection, Sequence

SATURATING = ("avx2", "avx512")
EXACT = ("vnni", "amx", "arm64")
CPUS = (*SATURATING, *EXACT)
_FASTEST_FIRST = {"amx": "amx", "vnni": "vnni", "avx512": "avx512", "avx2": "avx2", "dotprod": "arm64", "neon": "arm64"}


def kind(instructions: Collection[str]) -> str | None:
    """Which of `CPUS` a processor with these instruction sets (Target's words) is; None: none of them."""
    return next((name for flag, name in _FASTEST_FIRST.items() if flag in instructions), None)


def alike(name: str | None) -> tuple[str, ...]:
    """The kinds that compute the same integers as `name`, itself among them."""
    return next((group for group in (SATURATING, EXACT) if name in group), ())


def doubt(holds_on: Sequence[str], instructions: Collection[str], certified: bool) -> str | None:
    """Why the accuracy of a bundle is not known to hold on a processor, as a sentence; None where it is.

    An empty `holds_on` says nothing: the bundle is for no processor, or older than the field.
    """
    here = kind(instructions)
    if not holds_on or here is None or here in holds_on:
        return None
    known = "was found not to hold" if certified else "is not known to hold"
    return (
        f"the accuracy of this bundle {known} on this processor ({here}): it holds on {', '.join(holds_on)}; "
        "8-bit sums differ between them (docs/targets.md, CPUs differ)"
    )
