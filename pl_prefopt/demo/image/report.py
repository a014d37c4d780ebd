"""`ShapesReport`: what a run on the shapes world learned, read exactly from its own images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.demo.image.world import CLEAR, Reading, ShapesJudge, ShapesWorld, accuracy
from pl_prefopt.demo.plots import canvas
from pl_prefopt.judges.base import judged
from pl_prefopt.metrics import WinRate

BATCH = 64
"""Images per call of the network; these are small."""
GAP = 2
"""Pixels between images and their frame."""
ROWS = {
    "colour": "images of the caption's colour",
    "shape": "images of the caption's shape",
    "both": "images with both right",
    "clear": "images with a clear shape",
    "score": "judge's score, 0 to 1",
    "win_rate": "judge prefers them to those before",
    "accuracy": "accuracy on held-out pairs",
}


class ShapesReport(pl.Callback):
    """Sample every caption at fixed seeds before and after training, read the images, and draw both in one figure.

    Logs `demo/colour`, `demo/shape`, `demo/both`, `demo/clear`, `demo/clarity`, `demo/score` and, against the images
    before training, `demo/win_rate`. Writes report.json and before_after.png into the run folder, and the same to
    TensorBoard. Works with any module that has `sample(conditions, count, seed, ...)` when the datamodule has a
    `world`.

    Args:
        every_n_steps: optimizer steps between two measurements; None: only before and after.
        count: images per caption.
        seed: key of the draws.
        steps: of the sampler.
        guidance: of the sampler; 1 is off.
        threads: torch threads of the run; for models this small one is fastest, by far on a busy machine.

    Raises:
        ValueError: in `setup`, a datamodule without `world`; count or every_n_steps < 1.
    """

    def __init__(
        self, every_n_steps: int | None = None, count: int = 16, seed: int = 0, steps: int = 12, guidance: float = 1.0,
        threads: int = 1,
    ) -> None:  # fmt: skip
        if count < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise ValueError(f"count and every_n_steps must be >= 1, got {count} and {every_n_steps}")
        self.every_n_steps, self.count, self.seed = every_n_steps, count, seed
        self.steps, self.guidance, self.threads = steps, guidance, threads
        self.history: list[dict[str, float]] = []
        self._before: Tensor | None = None
        self._now: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that there is a world to read in."""
        torch.set_num_threads(self.threads)
        data = getattr(trainer, "datamodule", None)
        if not isinstance(getattr(data, "world", None), ShapesWorld):
            raise ValueError(
                f"ShapesReport reads images of the shapes world, but {type(data).__name__} has no `world`; use "
                "data: pl_prefopt.demo.image.data.ShapesDataModule, or leave the callback out"
            )

    def state_dict(self) -> dict[str, Any]:
        """Measurements so far and the images of the first policy."""
        return {"history": self.history, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self._before = state_dict["history"], state_dict["before"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the policy that the run begins with."""
        if self._before is None:
            self._measure(trainer, pl_module)
            if getattr(pl_module, "reference", None) is not None:
                self.history[0]["accuracy"] = 0.5  # every log-ratio is 0: all ties

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every few optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self.history[-1]["step"]:
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the policy that training ended with; write everything."""
        if not self.history:
            return
        if self.history[-1]["step"] != trainer.global_step or self._now is None:
            self._measure(trainer, pl_module)
        held_out = trainer.callback_metrics.get("val/accuracy")
        if held_out is not None:
            self.history[-1]["accuracy"] = float(held_out)
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            self._write(trainer, folder)

    def _measure(self, trainer: pl.Trainer, module: Any) -> None:
        """Every rank samples, because sharded policies need all of them."""
        world: ShapesWorld = trainer.datamodule.world  # type: ignore[attr-defined]
        options = {"steps": self.steps, "guidance": self.guidance, "batch_size": BATCH}
        now: Tensor = module.sample(world.captions, self.count, self.seed, **options).float().cpu()
        before = now if self._before is None else self._before
        self._now, self._before = now, before
        values = measure(world, now, before)
        self.history.append({"step": float(trainer.global_step), **values})
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"demo/{k}": v for k, v in values.items()}, step=trainer.global_step)

    def _write(self, trainer: pl.Trainer, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.history, indent=1), encoding="utf-8")
        assert self._before is not None
        assert self._now is not None
        world: ShapesWorld = trainer.datamodule.world  # type: ignore[attr-defined]
        figure = before_after_figure(world, self._before, self._now, int(self.history[-1]["step"]))
        figure.savefig(folder / "before_after.png")
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_figure("demo/before_after", figure, trainer.global_step, close=False)
        print_summary(self.history, folder)


def measure(world: ShapesWorld, images: Tensor, before: Tensor) -> dict[str, float]:
    """Exact rates of images (captions, n, 3, S, S) of `world.captions`, and their win rate against others.

    colour, shape, both: shares of images that show the caption's; clear: share whose clarity is at least `CLEAR`;
    clarity and score: means; win_rate: share of
    images that the exact judge scores above the one in the same place of `before`, ties one half.
    """
    count = images.shape[1]
    captions = [c for c in world.captions for _ in range(count)]
    readings: list[Reading] = world.read(images.flatten(0, 1))
    scores, others = (judged(ShapesJudge(world), captions, list(p.flatten(0, 1))) for p in (images, before))
    wins = WinRate()
    wins.update(scores, others)
    return {
        **accuracy(captions, readings),
        "clear": float(np.mean([r.clarity >= CLEAR for r in readings])),
        "clarity": float(np.mean([r.clarity for r in readings])),
        "score": float(scores.mean()),
        "win_rate": float(wins.compute()),
    }


def before_after_figure(world: ShapesWorld, before: Tensor, after: Tensor, step: int, shown: int = 4) -> Any:
    """Figure: a column per caption, `shown` rows of images before and of the same seeds after; right ones framed."""
    from matplotlib.patches import Rectangle

    captions, shown, tile = world.captions, min(shown, before.shape[1]), world.size + 2 * GAP
    images = torch.cat([before[:, :shown], after[:, :shown]], 1).clamp(0, 1)
    tiles = F.pad(images, (GAP,) * 4, value=1.0)
    width, height = 0.85 * len(captions), 0.85 * 2 * shown
    figure, (ax,) = canvas(1, 1, (width + 0.3, height + 0.5))
    ax.imshow(tiles.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
    for column, caption in enumerate(captions):
        for row, reading in enumerate(world.read(images[column])):
            if accuracy([caption], [reading])["both"]:
                corner = (column * tile + 0.5, row * tile + 0.5)
                ax.add_patch(Rectangle(corner, tile - 2, tile - 2, fill=False, color="#2a9d4b", linewidth=2))
    ax.axhline(shown * tile - 0.5, color="#222222", linewidth=1)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    names = [c.removeprefix("a ").replace(" ", "\n") for c in captions]
    ax.set_xticks([(i + 0.5) * tile for i in range(len(captions))], names, fontsize=9)
    ax.set_yticks(
        [shown * tile * f for f in (0.5, 1.5)], ["before", f"after {step} steps"], fontsize=9, rotation=90, va="center"
    )
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


def print_summary(history: Sequence[dict[str, float]], folder: Path) -> None:
    """What was learned, and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    first, last = history[0], history[-1]
    table = Table("", "before", "after", title=f"What {int(last['step'])} steps taught", title_justify="left")
    for name, label in ROWS.items():
        if name in last:
            table.add_row(label, f"{first[name]:.3f}" if name in first else "", f"[bold]{last[name]:.3f}[/]")
    console = Console(width=100)
    console.print(table)
    console.print(f"images and numbers: {folder}", soft_wrap=True, highlight=False)
