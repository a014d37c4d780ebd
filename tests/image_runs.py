"""A small image run, here or in a process of its own, for tests that stop it, resume it or spread it over processes.

    python -m tests.image_runs FOLDER '{"devices": 2, ...}'

The result is FOLDER/weights.pt (trainable tensors), FOLDER/metrics.json and, of every process, history-RANK.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_prefopt.callbacks import SelfPlayRounds
from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule
from pl_prefopt.demo.image.features import RandomFeatures
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.modules.checkpoints import trainable_tensors
from pl_prefopt.objectives import DPO
from pl_prefopt.references import AdapterCopy, AutoReference
from tests.datamodules.sample_images import image_folder
from tests.pictures import tiny_diffusion

ROOT = Path(__file__).parent.parent
SHORT = {"steps": 1, "guidance": 1.0}


def image_run(folder: Path, callbacks: list[pl.Callback] | None = None, **options: Any) -> pl.Trainer:
    """Fit on 12 pairs of 16 x 16 pixels, validate on 5, and write what came out."""
    module = ImagePreferenceModule(
        tiny_diffusion(options.get("name", "sd")),
        objective=DPO(beta=100.0),
        reference=AdapterCopy() if options.get("moving") else AutoReference(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-3),  # small gradients do not become signs
    )
    data = ImagePreferenceDataModule(
        str(image_folder(folder / "train", 12)),
        str(image_folder(folder / "val", 5)),
        geometry=Geometry([16, 16], flip=0.5),
        batch_size=options.get("batch_size", 4),
        cache_dir=str(folder / "cache"),
        caption_dropout=0.2,
    )
    devices = options.get("devices", 1)
    play = SelfPlayRounds(RandomFeatures(8), rounds=2, every_n_steps=1, samples=5, sampling=SHORT, piece=2)
    playing = [play] if options.get("self_play") else []
    saving = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        max_steps=options.get("max_steps", -1),
        callbacks=[*(callbacks or []), *playing, saving],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=options.get("resume"))
    (folder / f"history-{trainer.global_rank}.json").write_text(json.dumps(play.history))
    if trainer.is_global_zero:
        kept = {k: v.detach().clone() for k, v in trainable_tensors(module).items()}
        torch.save(kept, folder / "weights.pt")
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        (folder / "metrics.json").write_text(json.dumps(values))
    return trainer


def spread(folder: Path, **options: Any) -> None:
    """Call `image_run` in a new process."""
    folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.image_runs", str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=280)
    if done.returncode:
        raise AssertionError(f"run {options} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trainable tensors that a run ended with."""
    return torch.load(folder / "weights.pt", weights_only=True)


def metrics(folder: Path) -> dict[str, float]:
    """Validation metrics of a run."""
    return json.loads((folder / "metrics.json").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    image_run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
