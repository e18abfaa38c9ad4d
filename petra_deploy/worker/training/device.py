"""Where training runs: "auto" is a CUDA device, else Apple's MPS, else the CPU."""

import torch

from petra_deploy.core.errors import Problem


def resolve(name: str) -> str:
    """The torch device for `name`. Raises Problem where it was asked for by name and is not here."""
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (index and not (kind == "cuda" and index.isdecimal())):
        raise Problem("input", f"--device {name}: there is no such device", "choose auto, cuda, cuda:1, mps or cpu")
    missing = (kind == "cuda" and not cuda) or (kind == "mps" and not mps)
    if missing or (index and int(index) >= torch.cuda.device_count()):
        raise Problem("input", f"--device {name}: torch finds no such device here", "use --device auto, or cpu")
    return name
