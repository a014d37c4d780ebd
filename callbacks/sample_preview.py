"""Samples of fixed conditions before, during and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from pl_prefopt.callbacks._shared import evaluating, run_folder
from pl_prefopt.callbacks.protocols import require


class HasPreview(Protocol):
    """A module that shows what it makes."""

    def preview(self, conditions: Sequence[str], seed: int) -> list[str] | Tensor:
        """One sample per condition: texts, or pictures (N, 3, H, W) in [0, 1]; the same for the same seed."""
        ...


class SamplePreview(pl.Callback):
    """Draw one sample per condition before training, every few steps, and at the end, always with the same seed.

    Texts go to `samples.md` (one column a time), pictures to `samples.png` (one row a time), in the run folder, and
    to TensorBoard and W&B. The random state of training is not touched.

    Args:
        conditions: prompts, at least one.
        every_n_steps: optimizer steps between previews; None: only before and after.
        seed: key of the draws.
        path: folder; None: the run folder.

    Raises:
        ValueError: no condition, every_n_steps < 1.
        TypeError: the module has no `preview(conditions, seed)`.
    """

    def __init__(
        self, conditions: list[str], every_n_steps: int | None = None, seed: int = 0, path: str | None = None
    ) -> None:
        if not conditions:
            raise ValueError("conditions must hold at least one prompt")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1 or None, got {every_n_steps}")
        self.conditions, self.every_n_steps, self.seed, self.path = conditions, every_n_steps, seed, path
        self.shown: dict[int, list[str] | Tensor] = {}

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
            self._write(folder)

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
        self.shown[trainer.global_step] = made.detach().float().cpu().clamp(0, 1) if isinstance(made, Tensor) else made
        for logger in trainer.loggers:
            self._log(logger, trainer.global_step)

    def _log(self, logger: Any, step: int) -> None:
        made = self.shown[step]
        if isinstance(logger, pl.loggers.TensorBoardLogger):
            if isinstance(made, Tensor):
                logger.experiment.add_images("samples", made, step)
            else:
                logger.experiment.add_text("samples", table(self.conditions, {step: made}), step)
        elif isinstance(logger, pl.loggers.WandbLogger):
            if isinstance(made, Tensor):
                logger.log_image("samples", list(made), step=step, caption=[self.conditions])
            else:
                rows = [list(pair) for pair in zip(self.conditions, made, strict=True)]
                logger.log_text("samples", columns=["condition", "sample"], data=rows, step=step)

    def _write(self, folder: Path) -> None:
        pictures = {k: v for k, v in self.shown.items() if isinstance(v, Tensor)}
        texts = {k: v for k, v in self.shown.items() if isinstance(v, list)}
        if texts:
            (folder / "samples.md").write_text(table(self.conditions, texts), encoding="utf-8")
        if pictures:
            grid(self.conditions, pictures).savefig(folder / "samples.png", dpi=120)


def table(conditions: Sequence[str], shown: dict[int, list[str]]) -> str:
    """Markdown: a row per condition, a column per step."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", "<br>")

    head = ["condition", *(f"step {s}" for s in shown)]
    lines = [head, ["---"] * len(head)]
    lines += [[cell(c), *(cell(shown[s][i]) for s in shown)] for i, c in enumerate(conditions)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def grid(conditions: Sequence[str], shown: dict[int, Tensor]) -> Any:
    """Figure: a row per step, a column per condition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(conditions), 1.7 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(conditions), squeeze=False)
    for row, (step, pictures) in zip(axes, shown.items(), strict=True):
        for place, picture, condition in zip(row, torch.as_tensor(pictures), conditions, strict=True):
            place.imshow(picture.permute(1, 2, 0).numpy())
            place.set_xticks([])
            place.set_yticks([])
            if step == next(iter(shown)):
                place.set_title(condition, fontsize=7)
        row[0].set_ylabel(f"step {step}", fontsize=7)
    return figure
