"""A reference that follows the policy (TR-DPO, 2404.09656), for full fine-tuning and for adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import nn

from pl_prefopt.callbacks.support.protocols import Batch, HasReference, MovingReference, require
from pl_prefopt.utilities.checks import integer, within
from pl_prefopt.utilities.sharding import fill, settle, whole


class ReferenceSync(pl.Callback):
    """Every K optimizer steps: ref <- alpha * policy + (1 - alpha) * ref, parameter by parameter, in place.

    alpha = 1 is a hard update. The moved reference is saved in the checkpoint. The module has `policy` and `reference`;
    the reference either has a method `pairs(policy)` (FrozenCopy, AdapterCopy) or is a network with the parameters of
    the policy.

    Args:
        every_n_steps: K, optimizer steps, >= 1 (TRL: 512).
        alpha: in (0, 1] (TRL: .6).

    Raises:
        ValueError: K < 1 or alpha out of range; in `setup`, a reference that cannot move.
        TypeError: the module lacks `policy` or `reference`.
    """

    def __init__(self, every_n_steps: int = 512, alpha: float = 0.6) -> None:
        integer("every_n_steps", every_n_steps)
        within("alpha", alpha, 0, 1, open_low=True)
        self.every_n_steps = every_n_steps
        self.alpha = alpha
        self._last_step = 0

    @property
    def state_key(self) -> str:
        """Two instances with different settings have different keys."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, alpha=self.alpha)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module, and that its reference can move."""
        pl_module.configure_model()
        require(pl_module, self, HasReference)
        next(iter(self._pairs(pl_module)))  # a reference that cannot move raises here, not after K steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the reference when K new optimizer steps have been made."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        self.move(pl_module)

    @torch.no_grad()
    def move(self, pl_module: pl.LightningModule) -> None:
        """Move the reference now."""
        for reference, policy in self._pairs(pl_module):
            reference.lerp_(policy.to(reference.dtype), self.alpha)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the present reference."""
        checkpoint[self.state_key] = [whole(ref.detach()).cpu().clone() for ref, _ in self._pairs(pl_module)]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the reference."""
        saved = checkpoint.get(self.state_key)
        if saved is None:
            raise ValueError(
                "checkpoint must hold a moving reference of these settings, got one with no moving reference. Resume "
                "with the ReferenceSync that wrote it, or start a new run from the exported weights"
            )
        for (reference, _), value in zip(self._pairs(pl_module), saved, strict=True):
            fill(reference, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last update."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self._last_step = state_dict["last_step"]

    def _pairs(self, pl_module: pl.LightningModule) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(reference, policy) parameters, in shards where the networks are sharded."""
        module = cast(HasReference, pl_module)
        for network in (module.policy, module.reference):
            settle(network)
        if isinstance(module.reference, MovingReference):
            return iter(module.reference.pairs(module.policy))
        return zip(module.reference.parameters(), module.policy.parameters(), strict=True)
