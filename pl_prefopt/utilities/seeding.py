"""Random numbers that depend on what they are for, not on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any tuple of keys, e.g. (seed, "noise", step, row)."""
    digest = hashlib.sha256("/".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for these keys; the global random state is neither read nor changed."""
    return torch.Generator(device=device).manual_seed(derive_seed(*keys))
