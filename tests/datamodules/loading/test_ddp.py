"""Two processes (gloo) see what one sees, whatever Lightning would like to do with samplers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from tests.datamodules.sample_files import word_pairs, write_jsonl


class Recorder(L.LightningModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.folder, self.seen = folder, {"train": [], "val": []}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen["train"].append(batch["index"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.seen["val"].append(batch["index"].tolist())

    def on_train_end(self) -> None:
        (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, devices: int, wrap: bool, **options: Any) -> list[dict[str, list[list[int]]]]:
    data = TextPreferenceDataModule(
        str(folder / "train.jsonl"), val=str(folder / "val.jsonl"), tokenizer=TrainedTokenizer(kind="word"),
        cache_dir=str(folder / "cache"), **options,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False,
        strategy=DDPStrategy(start_method="fork") if devices > 1 else "auto", use_distributed_sampler=wrap,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Recorder(folder), datamodule=data)
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(devices)]


@pytest.mark.parametrize(("wrap", "streaming"), [(True, False), (False, False), (True, True)])
def test_two_processes_see_the_rows_of_one(tmp_path: Path, wrap: bool, streaming: bool) -> None:
    write_jsonl(tmp_path / "train.jsonl", word_pairs(21))
    write_jsonl(tmp_path / "val.jsonl", word_pairs(9, seed=1))
    two = fit(tmp_path, 2, wrap, batch_size=2, streaming=streaming, shuffle_buffer=8)
    (one,) = fit(tmp_path, 1, wrap, batch_size=4, streaming=streaming, shuffle_buffer=8)
    assert len(one["train"]) == 10
    assert [sorted(rows) for rows in one["train"]] == [
        sorted(a + b) for a, b in zip(two[0]["train"], two[1]["train"], strict=True)
    ]
    for seen in (one["val"], two[0]["val"] + two[1]["val"]):
        assert sorted(i for rows in seen for i in rows) == sorted([*range(9)] * 2)
    assert len(two[0]["val"]) == len(two[1]["val"])
