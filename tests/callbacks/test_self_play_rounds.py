"""Rounds of real images against own samples: pairs, promotion of the best weights, the end, and resuming."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pl_prefopt.callbacks import SelfPlayRounds
from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule
from pl_prefopt.utilities.seeding import keyed_generator

REAL, START, ROWS = 0.6, 0.2, 8
CAPTIONS = ("a wall", "a door")


class Mean(nn.Module):
    """Features: the mean of every channel of the left and of the right half."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([half.mean((2, 3)) for half in images.chunk(2, -1)], -1).flatten(1)


class Painter(pl.LightningModule):
    """Paints grey images; every step makes them lighter by `step`, past the real ones and on to white."""

    def __init__(self, step: float = 0.05) -> None:
        super().__init__()
        self.policy = nn.Linear(1, 1, bias=False)
        self.policy.weight.data.fill_(START)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.step = step
        self.seen: list[dict[str, Any]] = []
        self.states: list[int] = []

    def sample(self, conditions: Sequence[str], count: int, seed: int, contrast: float = 0.0) -> Tensor:
        out = []
        for i, caption in enumerate(conditions):
            g = keyed_generator(seed, caption, i)
            out.append(self.policy.weight.detach() + contrast * torch.randn(count, 3, 4, 4, generator=g))
        return torch.stack(out).clamp(0, 1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append({k: batch[k] for k in ("pixels", "caption")} | {"epoch": self.current_epoch})
        optimizer: Any = self.optimizers()
        self.states.append(len(optimizer.optimizer.state))
        return -self.policy.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.policy.parameters(), lr=self.step, momentum=1e-9)


def data(folder: Path) -> ImagePreferenceDataModule:
    """Real images are grey with a little noise; what they were preferred to is black."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for i in range(2 * ROWS):
        for name, level in (("real", REAL), ("worse", 0.0)):
            pixels = np.clip(255 * (level + 0.02 * rng.standard_normal((4, 4, 3))), 0, 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{i}.png")
        lines.append({"caption": CAPTIONS[i % 2], "chosen": f"real-{i}.png", "rejected": f"worse-{i}.png"})
    for split, rows in (("train", lines[:ROWS]), ("val", lines[ROWS:])):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return ImagePreferenceDataModule(
        str(folder / "train.jsonl"),
        str(folder / "val.jsonl"),
        geometry=Geometry(4),
        batch_size=2,
        cache_dir=str(folder / "c"),
    )


def rounds(**options: Any) -> SelfPlayRounds:
    base: dict[str, Any] = {"features": Mean(), "rounds": 3, "every_n_steps": 1, "samples": 8}
    return SelfPlayRounds(**{**base, "sampling": {"contrast": 0.02}, **options})


def fit(tmp_path: Path, callback: SelfPlayRounds, module: Painter, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=options.pop("max_epochs", 9), logger=False, callbacks=[callback],
        default_root_dir=tmp_path / "run", enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, enable_checkpointing=options.get("enable_checkpointing", False),
    )  # fmt: skip
    trainer.fit(module, datamodule=data(tmp_path / "data"), ckpt_path=options.get("ckpt_path"))
    return trainer


def test_real_images_meet_samples_of_the_reference_under_their_own_captions(tmp_path: Path) -> None:
    module = Painter()
    fit(tmp_path, rounds(rounds=1), module)
    assert len(module.seen) == 4
    for batch in module.seen:
        levels = batch["pixels"].mean((2, 3, 4)) / 2 + 0.5
        torch.testing.assert_close(levels, torch.tensor([[REAL, START]]).expand(2, 2), atol=0.03, rtol=0)
    lines = [json.loads(s) for s in (tmp_path / "run/rounds/round-000/pairs.jsonl").read_text().splitlines()]
    assert sorted(row["caption"] for row in lines) == ["a door"] * 4 + ["a wall"] * 4
    assert len({row["chosen"] for row in lines}) == len({row["rejected"] for row in lines}) == ROWS


def test_fewer_rows_are_drawn_by_the_seed(tmp_path: Path) -> None:
    module = Painter()
    fit(tmp_path, rounds(rounds=1, rows=4), module)
    assert len(module.seen) == 2


def test_the_best_weights_are_promoted_and_the_optimizer_starts_anew(tmp_path: Path) -> None:
    """Eight steps of .05 a round: .2 -> .6, the best at once; the second round overshoots and ends the run."""
    module, callback = Painter(), rounds(epochs_per_round=2)
    fit(tmp_path, callback, module)
    assert callback.best is not None
    assert callback.best["step"] == 8
    assert module.policy.weight.item() == pytest.approx(REAL, abs=1e-6)
    assert module.reference.weight.item() == pytest.approx(REAL, abs=1e-6)
    assert module.states == [0, *[1] * 7, 0, *[1] * 7]
    assert [h["step"] for h in callback.history] == list(range(17)), "the third round is not begun"
    second = [b["pixels"][:, 1].mean() / 2 + 0.5 for b in module.seen if b["epoch"] >= 2]
    torch.testing.assert_close(torch.stack(second), torch.full((8,), REAL), atol=0.03, rtol=0)


def test_the_best_of_a_round_need_not_be_its_last(tmp_path: Path) -> None:
    module, callback = Painter(step=0.1), rounds(rounds=1, epochs_per_round=2)
    fit(tmp_path, callback, module)
    assert callback.best is not None
    assert callback.best["step"] == 4
    assert module.policy.weight.item() == pytest.approx(REAL, abs=1e-6)
    fids = [h["fid"] for h in json.loads((tmp_path / "run/rounds/fid.json").read_text())]
    assert int(np.argmin(fids)) == 4
    assert fids[0] == pytest.approx(6 * (REAL - START) ** 2, rel=0.1), "means differ, covariances hardly"


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, parts = Painter(), [Painter(), Painter()]
    once = rounds(epochs_per_round=2)
    fit(tmp_path / "a", once, whole)
    first = fit(tmp_path / "b", rounds(epochs_per_round=2), parts[0], max_epochs=3, enable_checkpointing=True)
    assert first.checkpoint_callback is not None
    again = rounds(epochs_per_round=2)
    path = first.checkpoint_callback.best_model_path  # type: ignore[attr-defined]
    fit(tmp_path / "b", again, parts[1], ckpt_path=path)
    assert [h["fid"] for h in again.history] == [h["fid"] for h in once.history]
    assert parts[1].policy.weight.item() == whole.policy.weight.item()


@pytest.mark.parametrize("name", ["rounds", "epochs_per_round", "every_n_steps", "piece", "rows"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1.*got 0"):
        rounds(**{name: 0})


def test_a_module_that_cannot_sample_is_refused(tmp_path: Path) -> None:
    module = Painter()
    module.sample = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"SelfPlayRounds requires Painter\.sample\(conditions"):
        fit(tmp_path, rounds(), module)
