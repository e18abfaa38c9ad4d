"""Where training runs: "auto" is a CUDA device, else Apple's MPS, else the CPU."""

import torch

from petra_deploy.core.errors import Problem


def resolve(name: str) -> str:
    """The torch device for `name`. Raises Problem where it was asked for by name and is not here."""
    cuda = torch.cuda.is_available()
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if (name.startswith("cuda") and not cuda) or (name == "mps" and not mps):
        raise Problem("input", f"--device {name}: torch finds no such device here", "use --device auto, or cpu")
    if not name.startswith("cuda") and name not in ("mps", "cpu"):
        raise Problem("input", f"--device {name}: there is no such device", "choose auto, cuda, mps or cpu")
    return name
