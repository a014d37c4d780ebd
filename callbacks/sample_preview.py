"""Samples of fixed conditions before, during and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import evaluating, run_folder
from pl_prefopt.callbacks.support.shows import SAMPLE_RATE, Made, show_of


class HasPreview(Protocol):
    """A module that shows what it makes; `sample_rate` in Hz is for sounds."""

    def preview(self, conditions: Sequence[str], seed: int) -> Made:
        """One sample per condition, the same for the same seed.

        Texts: list of str. Ranked lists: list of lists of str. Pictures: (N, 3, H, W) or (N, 1, H, W) in [0, 1].
        Sounds: (N, T) in [-1, 1]. Point clouds: (N, P, 3) in metres.
        """
        ...


class SamplePreview(pl.Callback):
    """Draw one sample per condition before training, every few steps, and at the end, always with the same seed.

    In the run folder: texts and ranked lists as a table, `samples.md` (one column a time); pictures, spectrograms and
    point clouds as a grid, `samples.png` (one row a time); sounds also as `sample-<i>-step-<n>.wav`. The same goes to
    TensorBoard and W&B. Sampling runs in eval mode and leaves the random state of training as it was.

    Args:
        conditions: prompts, at least one.
        every_n_steps: optimizer steps between previews; None: only before and after.
        seed: key of the draws.
        path: folder; None: the run folder.

    Raises:
        ValueError: no condition, every_n_steps < 1.
        TypeError: the module has no `preview(conditions, seed)`, or it does not return one sample per condition; told
            before the first step.
    """

    def __init__(
        self, conditions: list[str], every_n_steps: int | None = None, seed: int = 0, path: str | None = None
    ) -> None:
        if not conditions:
            raise ValueError("conditions must hold at least one prompt")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1 or None, got {every_n_steps}")
        self.conditions, self.every_n_steps, self.seed, self.path = conditions, every_n_steps, seed, path
        self.shown: dict[int, Made] = {}

    @property
    def state_key(self) -> str:
        """Two instances with other conditions have other keys."""
        return self._generate_state_key(conditions=self.conditions, seed=self.seed)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module."""
        require(pl_module, self, "preview")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the policy that training starts from."""
        if not self.shown:
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the policy every few optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step not in self.shown:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the policy that training ended with, and write everything."""
        if trainer.global_step not in self.shown:
            self._show(trainer, pl_module)
        folder = run_folder(trainer, self.path)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            show = show_of(self.shown[trainer.global_step], len(self.conditions))
            show.write(folder, self.conditions, self.shown, getattr(pl_module, "sample_rate", SAMPLE_RATE))

    def state_dict(self) -> dict[str, Any]:
        """What has been shown."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what was shown before the interruption."""
        self.shown = state_dict["shown"]

    def _show(self, trainer: pl.Trainer, module: Any) -> None:
        """Every rank samples, because sharded policies need all of them; the first one keeps the result."""
        with evaluating(module), torch.no_grad():
            made = module.preview(self.conditions, self.seed)
        show = show_of(made, len(self.conditions))
        step, rate = trainer.global_step, getattr(module, "sample_rate", SAMPLE_RATE)
        self.shown[step] = made.detach().float().cpu() if isinstance(made, Tensor) else made
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                show.tensorboard(logger.experiment, self.conditions, self.shown[step], step, rate)
            elif isinstance(logger, WandbLogger):
                show.wandb(logger, self.conditions, self.shown[step], step, rate)
