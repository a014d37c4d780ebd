"""A reference that follows the policy (TR-DPO, 2404.09656), for full fine-tuning and for adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.utilities.sharding import fill, settle, whole


class ReferenceSync(pl.Callback):
    """Every K optimizer steps: ref <- alpha * policy + (1 - alpha) * ref, parameter by parameter, in place.

    alpha = 1 is a hard update. The moved reference is kept in the checkpoint. Works on modules with `policy` and
    `reference`; the reference either offers `pairs(policy)` (FrozenCopy, AdapterCopy) or is a network with the policy's
    parameters.

    Args:
        every_n_steps: K, optimizer steps, >= 1 (TRL: 512).
        alpha: in (0, 1] (TRL: .6).

    Raises:
        ValueError: K < 1 or alpha out of range; in `setup`, a reference that cannot move.
        TypeError: the module lacks `policy` or `reference`.
    """

    def __init__(self, every_n_steps: int = 512, alpha: float = 0.6) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1, got {every_n_steps}")
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        self.every_n_steps = every_n_steps
        self.alpha = alpha
        self._last_step = 0

    @property
    def state_key(self) -> str:
        """Two instances with other settings have other keys."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, alpha=self.alpha)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a reference and that it can move."""
        pl_module.configure_model()
        require(pl_module, self, "policy", "reference")
        next(iter(self._pairs(pl_module)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
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
        """Keep the reference where it stands."""
        checkpoint[self.state_key] = [whole(ref.detach()).cpu().clone() for ref, _ in self._pairs(pl_module)]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the reference back."""
        saved = checkpoint.get(self.state_key)
        if saved is None:
            raise ValueError(
                "the checkpoint holds no moving reference under these settings; resume with the ReferenceSync that "
                "wrote it, or start a new run from the exported weights"
            )
        for (reference, _), value in zip(self._pairs(pl_module), saved, strict=True):
            fill(reference, value)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last update."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting."""
        self._last_step = state_dict["last_step"]

    def _pairs(self, module: Any) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for network in (module.policy, module.reference):
            settle(network)
        if hasattr(module.reference, "pairs"):
            return iter(module.reference.pairs(module.policy))
        return zip(module.reference.parameters(), module.policy.parameters(), strict=True)
