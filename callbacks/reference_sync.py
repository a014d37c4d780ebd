"""A reference that follows the policy (TR-DPO, 2404.09656), for full fine-tuning and for adapters."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from pl_prefopt.callbacks.support.moving_reference import (
    check_can_move,
    load_reference,
    move_reference,
    save_reference,
)
from pl_prefopt.callbacks.support.protocols import Batch, HasReference, require
from pl_prefopt.utilities.checks import integer, within


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
        TypeError: in `setup`, a module without `policy` or `reference`.
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
        check_can_move(pl_module)  # now, not after K steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the reference after K further optimizer steps."""
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        move_reference(pl_module, self.alpha)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the present reference."""
        save_reference(pl_module, checkpoint, self.state_key)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the reference."""
        load_reference(pl_module, checkpoint, self.state_key)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last update."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self._last_step = state_dict["last_step"]
