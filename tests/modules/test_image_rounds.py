"""Rounds of sampling and judging on pictures: own samples become files, files become the next training pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pl_prefopt.callbacks import PreferenceRounds
from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule
from pl_prefopt.judges import Judge
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.policies import Diffusion
from pl_prefopt.references import AdapterCopy
from tests.datamodules.sample_images import image_folder


class Redness(Judge):
    """Mean red above mean blue."""

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        return torch.stack([s[0].mean() - s[2].mean() for s in samples])


class Seen(pl.Callback):
    """What every epoch trained on."""

    def __init__(self) -> None:
        self.epochs: list[list[Any]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append([])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.epochs[-1] += list(zip(batch["caption"], batch["latents_mean"], strict=True))


def redness_of(path: Path) -> float:
    with Image.open(path) as image:
        values = np.asarray(image, float)
    return float(values[..., 0].mean() - values[..., 2].mean())


def test_own_pictures_are_judged_paired_cached_and_trained_on(tmp_path: Path) -> None:
    data = ImagePreferenceDataModule(
        str(image_folder(tmp_path / "data", 4)),
        geometry=Geometry(16),
        batch_size=3,
        cache_dir=str(tmp_path / "cache"),
    )
    policy = Diffusion(tiny="pixel", lora={"r": 2})
    module = ImagePreferenceModule(policy, reference=AdapterCopy(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    rounds = PreferenceRounds(
        Redness(), rounds=2, candidates=2, truth=True, sampling={"steps": 2}, path=str(tmp_path / "rounds"), piece=2
    )
    seen = Seen()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=5, logger=False, enable_checkpointing=False, callbacks=[rounds, seen],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert len(seen.epochs) == 2
    for number, epoch in enumerate(seen.epochs):
        folder = tmp_path / "rounds" / f"round-{number:03d}"
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        assert {r["caption"] for r in rows} == set(data.conditions()) == {c for c, _ in epoch}
        for caption, latents in epoch:
            row = next(r for r in rows if r["caption"] == caption)
            better, worse = (folder / row[side] for side in ("chosen", "rejected"))
            assert redness_of(better) > redness_of(worse)
            for k, path in enumerate((better, worse)):
                with Image.open(path) as image:
                    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
                assert torch.allclose(latents[k], pixels, atol=1e-6)
