"""Checks of arguments and of data rows; each names what is wrong, what is accepted, and what was found.

There is one way to phrase an error: "<name> must be <accepted>, got <found>. <next step>", after "<file>, row <n>: "
where a row is at fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pl_prefopt.utilities.suggestions import did_you_mean

LARGEST = 1e6
"""Strengths, scales and temperatures above it are mistakes of typing."""


def rows(**tensors: Tensor) -> None:
    """Require one-dimensional floating tensors (B,) of one length.

    Raises:
        ValueError: naming the first that does not fit.
    """
    size = next(iter(tensors.values())).shape[:1].numel()
    for name, value in tensors.items():
        if value.shape != (size,):
            raise ValueError(f"{name} must be (B,), here ({size},), got shape {tuple(value.shape)}")
        floating(name, value)


def per_row(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """Return a finite number, or one for each row, as a tensor of the dtype and device of `like` (B,)."""
    out = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if out.shape not in ((), like.shape):
        raise ValueError(f"{name} must be one number or {tuple(like.shape)}, got shape {tuple(out.shape)}")
    finite(name, out)
    return out


def same_shape(name: str, value: Tensor, like: Tensor) -> None:
    """Require the shape of `like`."""
    if value.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)}, got shape {tuple(value.shape)}")


def finite(name: str, value: Tensor, least: float = -math.inf) -> None:
    """Require finite numbers, none below `least`."""
    bad = value[~(torch.isfinite(value) & (value >= least))]
    if bad.numel():
        accepted = "finite" if least == -math.inf else f"finite and >= {least}"
        raise ValueError(f"{name} must be {accepted}, got {float(bad.flatten()[0])}")


def table(name: str, value: Tensor, like: Tensor | None = None) -> None:
    """Require a floating (B, K) tensor, of the shape of `like` where given."""
    if value.dim() != 2 or (like is not None and value.shape != like.shape):
        wanted = "(B, K)" if like is None else f"{tuple(like.shape)}"
        raise ValueError(f"{name} must be {wanted}, got shape {tuple(value.shape)}")
    floating(name, value)


def floating(name: str, value: Tensor) -> None:
    """Require a floating dtype."""
    if not value.is_floating_point():
        raise ValueError(f"{name} must be a floating tensor, got {value.dtype}")


def positive(name: str, value: float) -> None:
    """Require a finite number above zero, and none that float32 could not multiply losses with."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:g}, got {value}")


def not_negative(name: str, value: float) -> None:
    """Require a finite number of at least zero."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")


def within(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Require low <= value <= high; `open_*` excludes that end."""
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if below or above or not math.isfinite(value):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} must lie in {left}{low}, {high}{right}, got {value}")


def integer(name: str, value: object, least: int = 1, *, optional: bool = False) -> None:
    """Require an integer of at least `least`, or None where `optional`."""
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        return
    raise ValueError(f"{name} must be an integer >= {least}{' or None' if optional else ''}, got {value!r}")


def choice(name: str, value: object, accepted: Iterable[object]) -> None:
    """Require one of the accepted values; the nearest one is suggested."""
    options = list(accepted)
    if value not in options:
        hint = did_you_mean(str(value), map(str, options))
        raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {value!r}. {hint}".rstrip(" ."))


def probabilities(name: str, value: Tensor) -> None:
    """Require numbers in [0, 1]."""
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{name} must lie in [0, 1], got values from {float(value.min())} to {float(value.max())}")


def distributions(name: str, value: Tensor) -> None:
    """Require rows that are not negative and sum to one, to 1e-4 or to the precision of their dtype."""
    sums, atol = value.double().sum(-1), max(1e-4, 2 * torch.finfo(value.dtype).eps)
    if bool((value < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=atol):
        raise ValueError(
            f"{name} must be distributions over the last axis (not negative, sum 1); got sums from "
            f"{float(sums.min()):.4f} to {float(sums.max()):.4f} and a minimum of {float(value.min()):.4f}"
        )


def list_mask(name: str, mask: Tensor | None, like: Tensor, least: int) -> Tensor:
    """Return the (B, K) bool mask, all True by default; every row keeps at least `least` entries."""
    if mask is None:
        mask = torch.ones_like(like, dtype=torch.bool)
    if mask.shape != like.shape or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool {tuple(like.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    counts = mask.sum(-1)
    if bool((counts < least).any()):
        short = [i for i, count in enumerate(counts) if int(count) < least]
        raise ValueError(f"{name}: rows {short} hold fewer than {least} items; accepted: lists of at least {least}")
    return mask
