"""Predictions on disk: every row once, under its own id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.callbacks import PredictionWriter
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.test_reference_sync import Foreign, loader, trainer
from tests.runs import write_pairs
from tests.tiny import nudge, tiny_lm


def test_rows_are_written_once_under_their_ids(tmp_path: Path) -> None:
    module = TextPreferenceModule(tiny_lm())
    module.configure_model()
    nudge(module.policy)
    data = TextPreferenceDataModule(
        test=write_pairs(tmp_path / "test.jsonl", 11),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    writer = PredictionWriter(str(tmp_path / "out"))
    for _ in range(2):  # a second run replaces the file
        run = trainer(tmp_path, writer)
        run.predict(module, datamodule=data, return_predictions=False)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions-0.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(11))
    row = next(line for line in lines if line["index"] == 3)
    batch = data.collate([data.datasets["test"][3]])  # pyright: ignore[reportOptionalCall]
    scores = module.eval().score(batch)
    assert scores.sum_logps is not None
    torch.testing.assert_close(torch.tensor(row["logps"]), scores.sum_logps[0].detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(row["rewards"]), 0.1 * scores.logratios[0].detach(), rtol=0, atol=1e-5)


def test_another_kind_of_prediction_is_refused(tmp_path: Path) -> None:
    class Odd(Foreign):
        def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
            return [1]

    with pytest.raises(ValueError, match=r"requires a dict of tensors from Odd\.predict_step, got list"):
        trainer(tmp_path, PredictionWriter(str(tmp_path))).predict(Odd(), loader())
