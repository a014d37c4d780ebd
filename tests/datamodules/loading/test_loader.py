from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pl_prefopt.datamodules import PlannedLoader, PreferenceDataModule, TrainBatches

N, BATCH = 26, 2
LENGTHS = np.random.default_rng(0).integers(1, 50, N)


class Rows(torch.utils.data.Dataset[int]):
    lengths = LENGTHS

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        return index


def collate(rows: list[int]) -> dict[str, Tensor]:
    return {"index": torch.tensor(rows)}


def loader(workers: int = 0, seed: int = 0, batch: int = BATCH, accumulate: int = 1) -> PlannedLoader:
    plan = TrainBatches(LENGTHS, batch, seed=seed, accumulate=accumulate)
    return PlannedLoader(Rows(), plan, collate, num_workers=workers)


def seen(batches: Any) -> list[list[int]]:
    return [b["index"].tolist() for b in batches]


class Data(PreferenceDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__(BATCH, 4, num_workers=workers)

    def setup(self, stage: str) -> None:
        self.datasets = {"train": Rows(), "val": Rows()}
        self.collate = collate


class Stop(Exception):
    pass


class Recorder(L.LightningModule):
    """Notes the rows of every training batch; stops by an exception after `stop` batches."""

    def __init__(self, stop: int | None = None, ask_steps: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.stop, self.ask_steps = stop, ask_steps
        self.train_rows: list[list[int]] = []
        self.noise: list[float] = []
        self.val_rows: list[int] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.stop is not None and len(self.train_rows) == self.stop:
            raise Stop
        self.train_rows.append(batch["index"].tolist())
        self.noise.append(torch.rand(()).item())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.val_rows += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.ask_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, module: Recorder, workers: int, resume: str | None = None, **options: Any) -> L.Trainer:
    keep = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[keep], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=options.pop("num_sanity_val_steps", 0), **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=Data(workers), ckpt_path=resume, weights_only=False if resume else None)
    return trainer


@pytest.mark.parametrize(
    ("stop", "workers", "ask_steps", "accumulate"),
    [
        (5, 0, True, 1),
        (5, 0, False, 1),
        (5, 2, True, 1),
        (12, 0, True, 1),
        (13, 0, True, 1),
        (14, 0, True, 1),
        (18, 0, False, 3),
    ],
)
def test_an_interrupted_run_goes_on_with_exactly_the_remaining_batches(
    tmp_path: Path, stop: int, workers: int, ask_steps: bool, accumulate: int
) -> None:
    whole = Recorder(ask_steps=ask_steps)
    fit(tmp_path / "whole", whole, 0, accumulate_grad_batches=accumulate)
    per_epoch = N // BATCH // accumulate * accumulate
    assert len(whole.train_rows) == 3 * per_epoch
    cut = Recorder(stop, ask_steps)
    with pytest.raises(Stop):
        fit(tmp_path / "cut", cut, workers, accumulate_grad_batches=accumulate)
    last = max((tmp_path / "cut").glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1].split("-")[0]))
    resumed = Recorder(ask_steps=ask_steps)
    fit(tmp_path / "rest", resumed, workers, str(last), accumulate_grad_batches=accumulate)
    assert cut.train_rows + resumed.train_rows == whole.train_rows


def test_evaluation_rows_come_once_per_pass_also_after_the_sanity_check(tmp_path: Path) -> None:
    module = Recorder()
    fit(tmp_path, module, 0, num_sanity_val_steps=2)
    assert sorted(module.val_rows[8:]) == sorted(list(range(N)) * 3)


def test_state_continues_and_another_epoch_starts_anew() -> None:
    first = loader()
    batches = iter(first)
    head = seen(next(batches) for _ in range(4))
    second = loader()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    rest = seen(second)
    assert head + rest == seen(loader())
    assert len(second) == 13
    assert seen(second) == head + rest
    second.set_epoch(1)
    assert seen(second) != head + rest
    assert len(seen(second)) == 13


def test_a_position_in_another_order_is_refused() -> None:
    first = loader()
    next(iter(first))
    with pytest.raises(
        ValueError, match=r"must be that of the checkpoint \(epoch 0, batch 1, order \w+\), got order \w+"
    ):
        loader(seed=1).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="batch_size"):
        loader(batch=1, accumulate=2).load_state_dict(first.state_dict())
    first.load_state_dict(first.state_dict() | {"position": 13, "order": "another"})


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    seen(loader(workers))
    assert torch.equal(before, torch.get_rng_state())


def test_lightning_keeps_the_batches_in_prediction_and_overfitting(tmp_path: Path) -> None:
    module = Recorder()
    fit(tmp_path, module, 0, overfit_batches=3)
    assert [len(rows) for rows in module.train_rows] == [BATCH] * 9
    assert module.train_rows[:3] == seen(loader())[:3]
