"""Samples of fixed conditions before, during and after training, side by side."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.preview_forms import SAMPLE_RATE, Preview, form_of
from pl_prefopt.callbacks.support.protocols import Batch, HasPreview, require
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.utilities.checks import integer


class SamplePreview(pl.Callback):
    """Draw one sample per condition before training, every few steps, and at the end, always with the same seed.

    In the run folder: texts and ranked lists as a table, `samples.md` (a column per step); images, spectrograms and
    point clouds as a grid, `samples.png` (a row per step); sounds also as `sample-<i>-step-<n>.wav`. The same goes to
    TensorBoard and W&B. Sampling runs in eval mode and leaves the random state of training unchanged.

    Args:
        conditions: prompts or captions, at least one.
        every_n_steps: optimizer steps between previews, >= 1; None: only before and after.
        seed: key of the draws.
        path: folder; None: the run folder.

    Raises:
        ValueError: no condition, every_n_steps < 1.
        TypeError: before the first step, a module without `preview(conditions, seed)`, or a preview that is not one
            sample per condition in a known form.
    """

    def __init__(
        self, conditions: list[str], every_n_steps: int | None = None, seed: int = 0, path: str | None = None
    ) -> None:
        if not conditions:
            raise ValueError("conditions must hold at least one prompt, got none")
        integer("every_n_steps", every_n_steps, optional=True)
        self.conditions, self.every_n_steps, self.seed, self.path = conditions, every_n_steps, seed, path
        self.shown: dict[int, Preview] = {}

    @property
    def state_key(self) -> str:
        """Two instances with different conditions have different keys."""
        return self._generate_state_key(conditions=self.conditions, seed=self.seed)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module."""
        require(pl_module, self, HasPreview)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the policy that training starts from."""
        if not self.shown:
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Show the policy every few optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step not in self.shown:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the policy that training ended with, and write the files."""
        if trainer.global_step not in self.shown:
            self._show(trainer, pl_module)
        folder = run_folder(trainer, self.path)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            form = form_of(self.shown[trainer.global_step], len(self.conditions))
            form.write(folder, self.conditions, self.shown, getattr(pl_module, "sample_rate", SAMPLE_RATE))

    def state_dict(self) -> dict[str, Any]:
        """Return all previews so far."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the previews from before the interruption."""
        self.shown = state_dict["shown"]

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Every rank samples, because sharded policies need all of them; only the first rank has loggers."""
        with evaluating(pl_module), torch.no_grad():
            samples = cast(HasPreview, pl_module).preview(self.conditions, self.seed)
        form = form_of(samples, len(self.conditions))
        step, rate = trainer.global_step, getattr(pl_module, "sample_rate", SAMPLE_RATE)
        self.shown[step] = samples.detach().float().cpu() if isinstance(samples, Tensor) else samples
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                form.tensorboard(logger.experiment, self.conditions, self.shown[step], step, rate)
            elif isinstance(logger, WandbLogger):
                form.wandb(logger, self.conditions, self.shown[step], step, rate)
