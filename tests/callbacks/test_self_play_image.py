"""Self-play on the image module: a latent diffusion model with adapters and a masked autoregressive model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks import SelfPlayRounds
from pl_prefopt.demo.image.data import ShapesDataModule
from pl_prefopt.demo.image.features import RandomFeatures
from pl_prefopt.demo.image.world import ShapesWorld
from pl_prefopt.experimental.lightgen import MaskedAutoregressivePolicy
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DDO
from pl_prefopt.policies import Diffusion
from pl_prefopt.references import AdapterCopy, FrozenCopy

CONFIG = {"channels": 3, "sample_size": [16, 16], "patch": 8, "text_dim": 32, "width": 16, "heads": 2}
CONFIG |= {"encoder_depth": 1, "decoder_depth": 1, "text_depth": 0, "head_depth": 1, "head_width": 16}
PIXEL = Diffusion(tiny="pixel")
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "latent diffusion, adapters": (
        Diffusion(tiny="sd", lora={"r": 2}),
        AdapterCopy(),
        {"steps": 2, "guidance": 1.0, "size": (16, 16)},
    ),
    "masked autoregressive": (
        MaskedAutoregressivePolicy(PIXEL, config=CONFIG, repeats=1, clip=1.0, iterations=2),
        FrozenCopy(),
        {"steps": 2, "guidance": 2.0},
    ),
}


class Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.seen.append(float(outputs["loss"]))


@pytest.mark.parametrize("name", CASES)
def test_ddo_starts_at_its_coin_loss_and_keeps_the_weights_of_the_least_fid(name: str, tmp_path: Path) -> None:
    policy, reference, sampling = CASES[name]
    module = ImagePreferenceModule(
        policy, DDO(3.0, 50.0), reference, lambda p: torch.optim.AdamW(p, lr=3e-2, weight_decay=0.0)
    )
    rounds = SelfPlayRounds(RandomFeatures(8), every_n_steps=2, samples=4, sampling=sampling)
    losses = Losses()
    data = ShapesDataModule(
        labels=False, wrong=0.0, rows=8, eval_rows=4, world=ShapesWorld(16), batch_size=2, cache_dir=str(tmp_path)
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[rounds, losses],
        default_root_dir=tmp_path / "run", enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert losses.seen[0] == pytest.approx(4 * math.log(2), abs=1e-5)
    assert losses.seen[-1] != pytest.approx(4 * math.log(2), abs=1e-3)
    assert [h["step"] for h in rounds.history] == [0, 2, 4]
    assert rounds.best is not None
    assert rounds.best["fid"] == min(h["fid"] for h in rounds.history)
    kept = dict(module.policy.named_parameters())
    assert all(torch.equal(kept[k], v) for k, v in rounds.best["weights"].items())
    assert len(list((tmp_path / "run/rounds/round-000/samples").iterdir())) == 8
