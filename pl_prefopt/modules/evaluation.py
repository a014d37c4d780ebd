"""Exact evaluation: sums and counts over all ranks and uneven last batches, never means of batch means."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from pl_prefopt.metrics import ExactMeans

Batch = dict[str, Any]
"""Tensors by name, rows first, and lists of texts; what is in it depends on the modality."""


class ExactEvaluation(pl.LightningModule):
    """A module that measures rows of a batch and logs their exact means; losses that are not finite stop training.

    A subclass gives `measure_rows`, which evaluation calls, and hands every training loss to `watch_loss`.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("loss",)
    """Names that `measure_rows` may give."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        self._unchecked_losses: list[tuple[Tensor, Tensor | None]] = []
        self._val_losses: list[float] = []
        self._rise_reported = False

    @abstractmethod
    def measure_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Quantities per row, (B,) each, by name; a part of `metric_names`."""

    def eval_names(self, stage: str) -> list[str]:
        """One name per evaluation set; a single set has no name, so its metrics are `val/accuracy` and so on."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if hasattr(datamodule, "names"):
            return [name.partition("/")[2] for name in datamodule.names(stage)]  # type: ignore[union-attr]
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        count = len(loaders) if isinstance(loaders, (list, tuple)) else 1
        return [""] if count == 1 else [str(i) for i in range(count)]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the exact sums."""
        self._means("val", dataloader_idx).update(self.measure_rows(batch))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the exact sums."""
        self._means("test", dataloader_idx).update(self.measure_rows(batch))

    def on_validation_epoch_start(self) -> None:
        """Begin with empty sums."""
        self._start("val")

    def on_validation_epoch_end(self) -> None:
        """Log the exact means of all ranks, and warn when the loss has risen for two evaluations of a fit."""
        self._finish("val")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._watch_rise()

    def on_test_epoch_start(self) -> None:
        """Begin with empty sums."""
        self._start("test")

    def on_test_epoch_end(self) -> None:
        """Log the exact means of all ranks."""
        self._finish("test")

    def means_of_ranks(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the rows of all ranks, of training metrics.

        One collective for all names, in which each rank has its place for every name, because ranks may measure
        different ones (lists with and without relevance); a reduction per name would then deadlock.
        """
        if self._trainer is None or self.trainer.world_size == 1:
            return {name: values.float().mean() for name, values in rows.items()}
        sums = torch.zeros(2, len(self.metric_names), device=self.device)
        for i, name in enumerate(self.metric_names):
            if name in rows:
                sums[0, i], sums[1, i] = rows[name].float().sum(), rows[name].numel()
        total, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return {name: total[i] / count[i] for i, name in enumerate(self.metric_names) if name in rows}

    def watch_loss(self, loss: Tensor, index: Tensor | None) -> None:
        """Remember a loss (a scalar) and its row ids until the optimizer step."""
        self._unchecked_losses.append((loss.detach(), index))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a loss that is not finite reaches the weights.

        Raises:
            ValueError: naming the step, the value and the batch's row ids.
        """
        losses, self._unchecked_losses = self._unchecked_losses, []
        # one transfer from the device for all micro-batches of the step
        if not losses or bool(torch.isfinite(torch.stack([loss for loss, _ in losses])).all()):
            return
        for loss, index in losses:
            if not torch.isfinite(loss):
                rows = index.tolist() if isinstance(index, Tensor) else index
                weights = (p for p in self.parameters() if p.requires_grad)
                finite = all(bool(torch.isfinite(p.detach()).all()) for p in weights)
                state = "The weights were not updated" if finite else "An earlier step broke the weights"
                raise ValueError(
                    f"train/loss is {loss.item()} at optimizer step {self.global_step}, rows {rows} of the training "
                    f"set. {state} and the last checkpoint is good: look at those rows, lower the learning rate, or "
                    "use bf16 instead of fp16."
                )

    def _watch_rise(self) -> None:
        losses = self.trainer.callback_metrics.get("val/loss")
        if losses is None:
            return
        self._val_losses = [*self._val_losses[-2:], float(losses)]
        before = self._val_losses
        if len(before) == 3 and before[0] < before[1] < before[2] and not self._rise_reported:
            self._rise_reported = True
            rank_zero_warn(
                f"val/loss rose from {before[0]:.4g} to {before[1]:.4g} to {before[2]:.4g} while training went on: the "
                "model overfits. Stop earlier (EarlyStopping, or the checkpoint of the lowest val/loss), lower the "
                "learning rate, or raise beta."
            )

    def _means(self, stage: str, dataloader_idx: int) -> ExactMeans:
        metric = self.metrics[f"{stage}{dataloader_idx}"]
        assert isinstance(metric, ExactMeans)
        return metric

    def _start(self, stage: str) -> None:
        for i in range(len(self.eval_names(stage))):
            key = f"{stage}{i}"
            if key not in self.metrics:
                self.metrics[key] = ExactMeans(self.metric_names).to(self.device)
            self._means(stage, i).reset()

    def _finish(self, stage: str) -> None:
        for i, name in enumerate(self.eval_names(stage)):
            means = self._means(stage, i).compute()
            prefix = stage if not name else f"{stage}/{name}"
            self.log_dict({f"{prefix}/{key}": mean.to(self.device) for key, mean in means.items()}, sync_dist=True)
