"""A small training run in a process of its own, for tests that kill it, resume it or spread it over two processes.

    python -m tests.runs FOLDER '{"kind": "full", "devices": 2, ...}'

The result is FOLDER/weights.pt (trainable tensors) and FOLDER/metrics.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.judges import Judge
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.modules.checkpoints import trainable_tensors
from pl_prefopt.references import AdapterCopy, AutoReference, CachedReference, FrozenCopy
from pl_prefopt.rounds import AllPairs
from pl_prefopt.utilities.sharding import whole
from tests.tiny import QWEN2, tiny_lm

ROOT = Path(__file__).parent.parent
STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "fsdp2": lambda: ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo", save_distributed_checkpoint=False
    ),
}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"policy": tiny_lm(), "reference": AutoReference()},
    "lora": {"policy": tiny_lm(lora=True), "reference": AutoReference()},
    "rounds": {"policy": tiny_lm(), "reference": FrozenCopy()},
    "moving": {"policy": tiny_lm(), "reference": FrozenCopy()},
    "moving-lora": {"policy": tiny_lm(lora=True), "reference": AdapterCopy()},
    "dropout": {
        "policy": tiny_lm(config={**QWEN2, "attention_dropout": 0.3}, dropout=True),
        "reference": FrozenCopy(),
    },
}


def write_pairs(path: Path, rows: int) -> str:
    """Deterministic pairs of a few words; the better one counts up, the worse one down."""
    words = ["ash", "bay", "cut", "dew", "elm", "fog", "gum", "hay", "ice", "jam"]
    with path.open("w") as out:
        for i in range(rows):
            start, n = i % 10, 2 + i % 4
            chosen = " ".join(words[(start + j) % 10] for j in range(n))
            rejected = " ".join(words[(start - j) % 10] for j in range(2 + (i * 7) % 5))
            prompt = " ".join(words[(start + j) % 10] for j in range(1 + i % 6))
            out.write(json.dumps({"prompt": prompt, "chosen": " " + chosen, "rejected": f" {rejected} {i}"}) + "\n")
    return str(path)


class KillAt(pl.Callback):
    """End the process the hard way after some optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Kill."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Vowels(Judge):
    """Vowels of a text; keeps count of its calls in a file, and ends the process at the one in $KILL_JUDGE_AT."""

    def __init__(self, file: str = "") -> None:
        self.file = file

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> torch.Tensor:
        """(B,) numbers of vowels."""
        with Path(self.file).open("a") as out:
            out.write(f"{conditions[0]}\n")
        if os.environ.get("KILL_JUDGE_AT") == str(len(Path(self.file).read_text().splitlines())):
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([sum(c in "aeiou" for c in s) for s in samples])


def run(folder: Path, options: dict[str, Any]) -> None:
    """Fit, validate, and write what came out."""
    torch.set_num_threads(1)
    kind = options.get("kind", "full")
    arguments = dict(KINDS[kind])
    if "cache" in options:
        arguments["reference"] = CachedReference(options["cache"])
    module = TextPreferenceModule(**arguments, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    data = TextPreferenceDataModule(
        train=write_pairs(folder / "train.jsonl", 24),
        val=write_pairs(folder / "val.jsonl", options.get("val_rows", 7)),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=options.get("batch_size", 4),
        cache_dir=str(folder / "cache"),
    )
    when = options.get("save", {"every_n_train_steps": 2})
    callbacks: list[pl.Callback] = [ModelCheckpoint(folder / "checkpoints", save_top_k=-1, filename="{step}", **when)]
    if kind.startswith("moving"):
        from pl_prefopt.callbacks import ReferenceSync

        callbacks.append(ReferenceSync(every_n_steps=3, alpha=0.6))
    if kind == "rounds":
        from pl_prefopt.callbacks import PreferenceRounds

        judge = Vowels(str(folder / "judged.txt"))
        sizes = {"candidates": 3, "prompts": 10, "replay": 0.5, "piece": 4, "sampling": {"max_new_tokens": 4}}
        callbacks.append(PreferenceRounds(judge, AllPairs(), path=str(folder / "rounds"), **sizes))
    if "kill_at" in options:
        callbacks.append(KillAt(options["kill_at"]))
    devices = options.get("devices", 1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=STRATEGIES[options.get("strategy", "ddp")]() if devices > 1 else "auto",
        max_epochs=options.get("epochs", 2),
        accumulate_grad_batches=options.get("accumulate", 1),
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=options.get("resume"))
    tensors = {k: whole(v) for k, v in trainable_tensors(module).items()}
    if trainer.is_global_zero:
        torch.save({k: v.detach().clone() for k, v in tensors.items()}, folder / "weights.pt")
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        (folder / "metrics.json").write_text(json.dumps(values))


def start(folder: Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Call `run` in a new process."""
    folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.runs", str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=180)
    if check and done.returncode:
        raise AssertionError(f"run {options} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Trainable tensors that a run ended with."""
    return torch.load(folder / "weights.pt", weights_only=True)


def metrics(folder: Path) -> dict[str, float]:
    """Validation metrics of a run."""
    return json.loads((folder / "metrics.json").read_text())


if __name__ == "__main__":
    from tests.runs import run as imported  # classes of this file carry its name, not __main__'s

    imported(Path(sys.argv[1]), json.loads(sys.argv[2]))
