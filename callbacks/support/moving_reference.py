"""Moving the reference of a module to its policy, and keeping a moved reference in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import nn

from pl_prefopt.callbacks.support.protocols import HasReference, MovingReference
from pl_prefopt.utilities.sharding import fill, settle, whole


def check_can_move(pl_module: pl.LightningModule) -> None:
    """Check that the reference can move.

    Raises:
        ValueError: it cannot.
    """
    next(iter(reference_pairs(pl_module)))


def reference_pairs(pl_module: pl.LightningModule) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """(reference, policy) parameters, in shards where the networks are sharded."""
    module = cast(HasReference, pl_module)
    for network in (module.policy, module.reference):
        settle(network)
    if isinstance(module.reference, MovingReference):
        return iter(module.reference.pairs(module.policy))
    return zip(module.reference.parameters(), module.policy.parameters(), strict=True)


@torch.no_grad()
def move_reference(pl_module: pl.LightningModule, alpha: float = 1.0) -> None:
    """Ref <- alpha * policy + (1 - alpha) * ref, parameter by parameter, in place."""
    for reference, policy in reference_pairs(pl_module):
        reference.lerp_(policy.to(reference.dtype), alpha)


def save_reference(pl_module: pl.LightningModule, checkpoint: dict[str, Any], key: str) -> None:
    """Save the values of the reference in a checkpoint; every rank must call."""
    checkpoint[key] = [whole(reference.detach()).cpu().clone() for reference, _ in reference_pairs(pl_module)]


def load_reference(pl_module: pl.LightningModule, checkpoint: dict[str, Any], key: str) -> None:
    """Restore the values of the reference from a checkpoint.

    Raises:
        ValueError: the checkpoint has none under this key.
    """
    values = checkpoint.get(key)
    if values is None:
        raise ValueError(
            "checkpoint must hold a moving reference of these settings, got one with no moving reference. Resume with "
            "the callback and settings that wrote it, or start a new run from the exported weights"
        )
    for (reference, _), value in zip(reference_pairs(pl_module), values, strict=True):
        fill(reference, value)
