"""Runs under a Trainer, for claims about callbacks; data in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import TRAIN_DATALOADERS
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.claims.train import Batch
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import FromCallable

LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


class Rows:
    """Row numbers; the rows themselves are columns of a batch."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = [int(n) for n in numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> int:
        return self.numbers[i]

    def select(self, kept: Sequence[int]) -> Rows:
        """Some of them."""
        return Rows([self.numbers[int(i)] for i in kept])


class MemoryData(pl.LightningDataModule):
    """A batch of all rows, served in pieces.

    Args:
        rows: columns of all rows.
        size: rows per step.
        seed: order; None keeps that of the rows, for a stream.
    """

    def __init__(self, rows: Batch, size: int, seed: int | None) -> None:
        super().__init__()
        self.rows, self.size, self.seed = rows, size, seed
        self.datasets: dict[str, Any] = {"train": Rows(range(len(rows["index"])))}

    def collate(self, numbers: Sequence[int]) -> Batch:
        """Rows by number."""
        return {k: v[list(numbers)] for k, v in self.rows.items()}

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """Batches in a seeded order."""
        order = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.datasets["train"], self.size, shuffle=order is not None, generator=order, collate_fn=self.collate
        )


class Watch(pl.Callback):
    """Call a function with the policy and the step after every few optimizer steps."""

    def __init__(self, every: int, call: Callable[[nn.Module, int], None]) -> None:
        self.every, self.call = every, call

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Measure when it is due."""
        if trainer.global_step % self.every == 0:
            self.call(pl_module.policy, trainer.global_step)


def with_lora(network: nn.Module, seed: int) -> nn.Module:
    """New adapters on all linear layers of `network`, which stays frozen below them."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **LORA)).train()  # type: ignore[arg-type]


def fit(
    network: nn.Module,
    objective: Objective,
    data: pl.LightningDataModule,
    *,
    steps: int = -1,
    epochs: int = -1,
    lr: float = 1e-3,
    decay: bool = True,
    callbacks: Sequence[pl.Callback] = (),
) -> nn.Module:
    """Train `network` itself for so many steps or epochs; clipping at 1; cosine over the steps if `decay`."""
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps) if decay else None
    module = TextPreferenceModule(
        FromCallable(lambda: network),
        objective,
        optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.0),
        lr_scheduler=schedule,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, max_epochs=epochs, gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            default_root_dir=folder, callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return module.policy
