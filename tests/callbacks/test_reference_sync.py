"""A moving reference in a foreign LightningModule, and in ours with adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pl_prefopt.callbacks import ReferenceSync
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.references import AdapterOff
from tests.tiny import tiny_lm


class Foreign(pl.LightningModule):
    """Somebody's own module: pairs of vectors, no class of ours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.policy = torch.nn.Linear(4, 1)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        chosen, rejected = batch
        z = self.policy(chosen) - self.reference(chosen) - self.policy(rejected) + self.reference(rejected)
        return torch.nn.functional.softplus(-z).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.policy.parameters(), lr=0.5)


def loader() -> DataLoader:
    g = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(32, 4, generator=g) + 1, torch.randn(32, 4, generator=g)), batch_size=4)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), **options,
    )  # fmt: skip


class Record(pl.Callback):
    """Policy and reference after every optimizer step."""

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.pairs):
            self.pairs.append((pl_module.policy.weight.detach().clone(), pl_module.reference.weight.detach().clone()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_follows_the_formula_by_optimizer_steps(accumulate: int, tmp_path: Path) -> None:
    record, module = Record(), Foreign()
    reference = module.reference.weight.clone()
    sync = ReferenceSync(every_n_steps=2, alpha=0.25)
    run = trainer(tmp_path, sync, record, max_epochs=1, accumulate_grad_batches=accumulate)
    run.fit(module, loader())
    assert len(record.pairs) == 8 // accumulate
    for step, (policy, moved) in enumerate(record.pairs, start=1):
        if step % 2 == 0:
            reference = 0.25 * policy + 0.75 * reference
        torch.testing.assert_close(moved, reference, rtol=0, atol=1e-6)


def test_a_resumed_run_has_the_same_reference(tmp_path: Path) -> None:
    whole, cut, resumed = Foreign(), Foreign(), Foreign()
    trainer(tmp_path, ReferenceSync(3, 0.5), max_steps=8).fit(whole, loader())
    first = trainer(tmp_path, ReferenceSync(3, 0.5), max_epochs=1, limit_train_batches=4)
    first.fit(cut, loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(tmp_path, ReferenceSync(3, 0.5), max_epochs=2, limit_train_batches=4)
    again.fit(resumed, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    straight = Foreign()
    trainer(tmp_path, ReferenceSync(3, 0.5), max_epochs=2, limit_train_batches=4).fit(straight, loader())
    assert torch.equal(resumed.reference.weight, straight.reference.weight)
    assert torch.equal(resumed.policy.weight, straight.policy.weight)
    assert not torch.equal(resumed.reference.weight, Foreign().reference.weight)


def test_a_checkpoint_without_a_moving_reference_is_refused(tmp_path: Path) -> None:
    plain = trainer(tmp_path, max_steps=2)
    plain.fit(Foreign(), loader())
    plain.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no moving reference"):
        trainer(tmp_path, ReferenceSync(3, 0.5), max_steps=4).fit(Foreign(), loader(), ckpt_path=tmp_path / "a.ckpt")


def test_two_instances_have_their_own_keys() -> None:
    assert ReferenceSync(3, 0.5).state_key != ReferenceSync(4, 0.5).state_key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer >= 1"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceSync(**options)


def test_a_module_without_a_reference_is_told_what_is_missing(tmp_path: Path) -> None:
    module = Foreign()
    del module.reference
    with pytest.raises(TypeError, match=r"ReferenceSync requires Foreign\.reference, .*, which is not defined"):
        trainer(tmp_path, ReferenceSync(1), max_steps=1).fit(module, loader())


def test_a_reference_that_cannot_move_says_which_can(tmp_path: Path) -> None:
    module = TextPreferenceModule(tiny_lm(lora=True), reference=AdapterOff())
    with pytest.raises(ValueError, match="AdapterCopy"):
        trainer(tmp_path, ReferenceSync(1), max_steps=1).fit(module, loader())
