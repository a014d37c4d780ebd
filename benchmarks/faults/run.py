"""The small training runs that are killed: one process, or two, that resume from their last checkpoint.

    python -m benchmarks.faults.run FOLDER RUN

The result is FOLDER/weights.pt. The environment variable FAULT says when the process shall end itself the hard way:
`replace:3` is just before the third call of `os.replace`; FAULT_COUNTS is a file for the number of such calls.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from pl_prefopt.callbacks import AdapterExport, PreferenceRounds, ReferenceSync
from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule, TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.judges import Judge
from pl_prefopt.modules import ImagePreferenceModule, TextPreferenceModule
from pl_prefopt.modules.checkpoints import trainable_tensors
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import CausalLM, Diffusion
from pl_prefopt.references import AutoReference, CachedReference, FrozenCopy, Reference
from pl_prefopt.rounds import AllPairs

RUNS = (
    "plain", "accumulation", "moving reference", "rounds", "cached reference", "streaming", "image", "two processes",
)  # fmt: skip
OPERATIONS = ("replace", "rename", "fsync", "unlink")
WORDS = ["ash", "bay", "cut", "dew", "elm", "fog", "gum", "hay", "ice", "jam"]
TINY = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "vocab_size": 80,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class Vowels(Judge):
    """Number of vowels of a text."""

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> torch.Tensor:
        """(B,) numbers."""
        return torch.tensor([sum(letter in "aeiou" for letter in sample) for sample in samples])


def watch_operations() -> Counter[str]:
    """Count file operations of this process, and end it before the one that FAULT names."""
    counts: Counter[str] = Counter()
    operation, _, number = os.environ.get("FAULT", "").partition(":")

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            if name == operation and counts[name] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return operate

    for name in OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
    return counts


def text_rows(file: Path, rows: int) -> str:
    """Pairs of a few words: the better one counts up, the worse one down."""
    if not file.exists():
        lines = []
        for i in range(rows):
            chosen = " ".join(WORDS[(i + j) % 10] for j in range(2 + i % 4))
            rejected = " ".join(WORDS[(i - j) % 10] for j in range(2 + i * 7 % 5))
            row = {"prompt": " ".join(WORDS[: 1 + i % 6]), "chosen": f" {chosen}", "rejected": f" {rejected} {i}"}
            lines.append(json.dumps(row) + "\n")
        file.write_text("".join(lines))
    return str(file)


def image_rows(folder: Path, rows: int) -> str:
    """Pairs of noise."""
    file = folder / "pairs.jsonl"
    if not file.exists():
        folder.mkdir()
        generator = np.random.default_rng(0)
        for name in (f"{kind}{i}.png" for i in range(rows) for kind in ("good", "bad")):
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
        pairs = [{"caption": f"no. {i % 3}", "chosen": f"good{i}.png", "rejected": f"bad{i}.png"} for i in range(rows)]
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(file)


def image_run(folder: Path) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A diffusion model with adapters."""
    module = ImagePreferenceModule(
        Diffusion(tiny="sd", lora={"r": 2}),
        objective=DPO(beta=100.0),
        reference=AutoReference(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    data = ImagePreferenceDataModule(
        image_rows(folder / "images", 12),
        geometry=Geometry(16, flip=0.5),
        batch_size=2,
        cache_dir=str(folder / "cache"),
        caption_dropout=0.2,
    )
    return module, data


def text_run(folder: Path, name: str) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """A language model whose every weight trains."""
    reference: Reference = FrozenCopy()
    if name == "cached reference":
        reference = CachedReference(str(folder / "reference"))
    module = TextPreferenceModule(
        CausalLM(config=TINY),
        reference=reference,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20),
    )
    streams: dict[str, Any] = {}
    if name == "streaming":
        streams = {"streaming": True, "shuffle_buffer": 8, "num_workers": 1}
    data = TextPreferenceDataModule(
        train=text_rows(folder / "train.jsonl", 26),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=2,
        cache_dir=str(folder / "cache"),
        **streams,
    )
    return module, data


def run(folder: Path, name: str) -> None:
    """Train for three epochs, from the last checkpoint if there is one."""
    counts = watch_operations()
    torch.set_num_threads(1)
    module, data = image_run(folder) if name == "image" else text_run(folder, name)
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(checkpoints, every_n_train_steps=1, save_top_k=2, monitor="step", mode="max", save_last=True),
        AdapterExport(str(folder / "export")),
    ]
    if name == "moving reference":
        callbacks.append(ReferenceSync(every_n_steps=3, alpha=0.6))
    if name == "rounds":
        sizes: dict[str, Any] = {"candidates": 3, "prompts": 10, "piece": 4, "sampling": {"max_new_tokens": 4}}
        callbacks.append(PreferenceRounds(Vowels(), AllPairs(), replay=0.5, path=str(folder / "rounds"), **sizes))
    devices = 2 if name == "two processes" else 1
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        accumulate_grad_batches=2 if name in ("accumulation", "streaming", "two processes") else 1,
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        torch.save({k: v.detach().clone() for k, v in trainable_tensors(module).items()}, folder / "weights.pt")
        if file := os.environ.get("FAULT_COUNTS"):
            Path(file).write_text(json.dumps(counts))


if __name__ == "__main__":
    from benchmarks.faults.run import run as imported  # classes of this file carry its name, not __main__'s

    imported(Path(sys.argv[1]), sys.argv[2])
