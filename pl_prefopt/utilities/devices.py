"""Names of devices in configurations."""

from __future__ import annotations

import torch


def default_device(name: str | None) -> torch.device:
    """The device of a name such as "cuda:1"; None is a GPU if there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
