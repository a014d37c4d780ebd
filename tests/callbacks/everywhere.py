"""Runs with several callbacks at once, for two modalities: a foreign denoiser, and our text module.

    python -m tests.callbacks.everywhere FOLDER KIND...     (RANK 0 or 1 of 2 in LOCAL_RANK)

makes the runs of these kinds in processes that the caller starts, in FOLDER/KIND; `result` reads them back. KIND@fsdp2
shards the model, and goes on from the middle of that run in FOLDER/KIND/resumed.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader, DistributedSampler

from pl_prefopt import callbacks as ours
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.mixtures.sources import SourceSampler
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.references import FrozenCopy
from pl_prefopt.utilities.sharding import whole
from tests.runs import STRATEGIES, write_pairs
from tests.tiny import tiny_lm

SIZE = 2
PIXELS = 3 * SIZE * SIZE


class Denoiser(pl.LightningModule):
    """Somebody's diffusion model of pictures of 2 x 2 pixels; nothing in it comes from the library."""

    def __init__(self, lora: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.policy: Any = torch.nn.Sequential(torch.nn.Linear(PIXELS, 8), torch.nn.SiLU(), torch.nn.Linear(8, PIXELS))
        for p in self.policy.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=g)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False).eval()
        if lora:
            inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"]), self.policy)
            for name, p in self.policy.named_parameters():
                if "lora_" in name:
                    p.data = 0.1 * torch.randn(p.shape, generator=g)
        self.modes: set[bool] = set()

    def noisy(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, P) noised pictures and their noise, a fixed draw per level."""
        noise = torch.randn(len(levels), PIXELS, generator=torch.Generator().manual_seed(5)).to(x)
        return x[:, None] * (1 - levels[:, None]) + noise * levels[:, None], noise.expand(len(x), -1, -1)

    def ratio(self, x: Tensor) -> Tensor:
        noised, noise = self.noisy(x, torch.tensor([0.3, 0.7]))
        policy, reference = (n(noised).sub(noise).square().sum((1, 2)) for n in (self.policy, self.reference))
        return -(policy - reference) / 2

    def pair_logratios(self, batch: Any) -> tuple[Tensor, Tensor]:
        self.modes.add(self.reference.training)
        return self.ratio(batch["chosen"]), self.ratio(batch["rejected"])

    def pair_hidden_states(self, batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = [self.policy[:2](self.noisy(batch[k], torch.tensor([0.3, 0.7]))[0]) for k in ("chosen", "rejected")]
        mask = torch.ones(features[0].shape[:2], dtype=torch.bool)
        return features[0], mask, features[1], mask

    def preview(self, conditions: Sequence[str], seed: int) -> Tensor:
        torch.manual_seed(seed)  # as people write it: the global random state
        x = torch.randn(len(conditions), PIXELS)
        for _ in range(3):
            x = x - 0.3 * self.policy(x)
        return torch.sigmoid(x).view(-1, 3, SIZE, SIZE)

    def export(self, folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in self.policy.state_dict().items()}, folder / "policy.safetensors")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        chosen, rejected = self.pair_logratios(batch)
        return -logsigmoid(chosen - rejected).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"index": batch["index"], "rewards": torch.stack(self.pair_logratios(batch), 1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.policy.parameters() if p.requires_grad], lr=0.02)


class Resumable(DataLoader):
    """A loader that goes on within an epoch, by the two methods that Lightning looks for."""

    at = start = 0

    def __iter__(self) -> Any:
        start, self.start = self.start, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.at = i + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["at"]


class Pictures(pl.LightningDataModule):
    """Bright pictures are preferred in source "a", dark ones in source "b"; validation is like "a"."""

    def __init__(self, batch_size: int = 4, sources: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        dark, light = torch.rand(16, PIXELS, generator=g) * 0.5, torch.rand(16, PIXELS, generator=g) * 0.5 + 0.5
        flipped = torch.arange(16)[:, None] >= 8
        pairs = (torch.where(flipped, dark, light), torch.where(flipped, light, dark))
        self.datasets: dict[str, Any] = {
            "train": [{"index": i, "chosen": c, "rejected": r} for i, (c, r) in enumerate(zip(*pairs, strict=True))],
            "val": [{"index": i, "chosen": light[i], "rejected": dark[i]} for i in range(8)],
        }
        self.batch_size, self.sources = batch_size, sources
        self.collate = torch.utils.data.default_collate

    def images(self, split: str, row: int) -> Tensor:
        return torch.stack([self.datasets[split][row][k].view(3, SIZE, SIZE) for k in ("chosen", "rejected")])

    def train_dataloader(self) -> DataLoader:
        rows: Any = self.datasets["train"]
        sampler = SourceSampler({"a": range(8), "b": range(8, 16)}, block=4) if self.sources else self.in_order(rows)
        return Resumable(rows, batch_size=self.batch_size, sampler=sampler)

    def in_order(self, rows: Any) -> DistributedSampler:
        """Lightning would shuffle where there are several processes, and only there."""
        assert self.trainer is not None
        return DistributedSampler(rows, self.trainer.world_size, self.trainer.global_rank, shuffle=False)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.datasets["val"], batch_size=self.batch_size)

    predict_dataloader = val_dataloader


def text_data(folder: Path, batch_size: int, sources: bool) -> TextPreferenceDataModule:
    one, two = (write_pairs(folder / f"{n}.jsonl", 8) for n in "ab")
    return TextPreferenceDataModule(
        train={"a": one, "b": two} if sources else write_pairs(folder / "train.jsonl", 16),
        val=write_pairs(folder / "val.jsonl", 7),
        test=write_pairs(folder / "test.jsonl", 9),  # one batch more on the first of two ranks
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=batch_size,
        cache_dir=str(folder / "cache"),
    )


def text_module(lora: bool) -> TextPreferenceModule:
    options: dict[str, Any] = {} if lora else {"reference": FrozenCopy()}
    return TextPreferenceModule(tiny_lm(lora=lora), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **options)


def on_weights(folder: Path) -> list[pl.Callback]:
    """Callbacks for full fine-tuning with a moving reference."""
    return [
        ours.CHESFilter(rank=12, path=str(folder / "ches"), part=4),
        ours.ReferenceSync(every_n_steps=3, alpha=0.5),
        ours.LikelihoodDisplacementMonitor(),
        ours.SamplePreview(["ash bay", "elm fog"], every_n_steps=2),
        ours.AdapterExport(),
    ]


def on_adapters(folder: Path) -> list[pl.Callback]:
    """Callbacks for two adapters on a mixture."""
    return [
        ours.FastSlowLoRA(beta=1.0, ratio=0.5, every_n_steps=2),
        ours.GroupInfluenceMixture(every_n_steps=3, rows=8, batches=9, entropy=0.3),
        ours.AdapterExport(at_checkpoints=False),
    ]


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Path], list[pl.Callback]], bool]] = {
    "denoiser": (Denoiser, lambda folder, *options: Pictures(*options), on_weights, False),
    "denoiser-lora": (Denoiser, lambda folder, *options: Pictures(*options), on_adapters, True),
    "text": (text_module, text_data, on_weights, False),
    "text-lora": (text_module, text_data, on_adapters, True),
}


class Crash(pl.Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("crash")


def run(
    kind: str,
    folder: Path,
    strategy: str = "auto",
    crash_at: int | None = None,
    resume: Path | None = None,
) -> Any:
    """Fit six steps and predict; returns the trainer."""
    make_module, make_data, make_callbacks, lora = KINDS[kind]
    devices = 1 if strategy == "auto" else 2
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    module, data = make_module(lora), make_data(folder, 4 // devices, lora)
    keep = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    callbacks = [*make_callbacks(folder), ours.PredictionWriter(), keep, *([Crash(crash_at)] if crash_at else [])]
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=STRATEGIES[strategy]() if devices > 1 else "auto", max_steps=6,
        logger=False,
        callbacks=callbacks, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.predict(module, datamodule=data, return_predictions=False)
    found = outcome(trainer)
    if trainer.is_global_zero:
        torch.save(found, folder / "outcome.pt")
    return trainer


def outcome(trainer: Any) -> dict[str, Any]:
    """All tensors of the module, and what the callbacks remember."""
    states = {
        type(c).__name__: c.state_dict() for c in trainer.callbacks if type(c).__module__.startswith("pl_prefopt")
    }
    tensors = {k: whole(v).detach().clone() for k, v in trainer.lightning_module.state_dict().items()}
    return {"tensors": tensors, "callbacks": states}


def result(folder: Path) -> dict[str, Any]:
    """Outcome of a run, with the predictions of all ranks by row id."""
    lines = [line for f in sorted(folder.glob("predictions-*.jsonl")) for line in f.read_text().splitlines()]
    rows = {row["index"]: row["rewards"] for row in map(json.loads, lines)}
    return torch.load(folder / "outcome.pt", weights_only=True) | {"predictions": rows}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        kind, _, strategy = name.partition("@")
        folder = Path(sys.argv[1]) / name
        run(kind, folder, strategy or "ddp")
        if strategy:
            torch.distributed.barrier()
            run(kind, folder / "resumed", strategy, resume=folder / "checkpoints/step=4.ckpt")
