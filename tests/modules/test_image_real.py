"""From raw photographs to a fitted adapter, and training with and without cached latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pl_prefopt.adapters import adapters_disabled
from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule, relabel_images
from pl_prefopt.judges import Judge
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import Diffusion
from tests.datamodules.sample_files import write_jsonl


class Sharpness(Judge):
    """Mean absolute difference of neighbouring pixels."""

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        return torch.stack([(s[..., 1:, :] - s[..., :-1, :]).abs().mean() for s in samples])


class Losses(pl.Callback):
    """Loss of every training step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def photographs(folder: Path) -> Path:
    """Photographs of scikit-image and scikit-learn, each against a blurred, over-compressed copy; no labels."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = {n: getattr(data, n)() for n in ("astronaut", "coffee", "chelsea", "rocket")}
    arrays |= dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    folder.mkdir()
    rows = []
    for i, (name, array) in enumerate(arrays.items()):
        image = Image.fromarray(np.ascontiguousarray(array))
        image.thumbnail((200, 200))
        image.save(folder / f"{name}.png")
        image.filter(ImageFilter.GaussianBlur(2)).save(folder / f"{name}-degraded.jpg", quality=30)
        names = [f"{name}.png", f"{name}-degraded.jpg"]
        pair = names if i % 2 else names[::-1]
        rows.append({"caption": f"a photograph, {name}", "image_0": pair[0], "image_1": pair[1], "label_0": 0.5})
    return write_jsonl(folder / "unlabelled.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    raw = photographs(tmp_path / "photographs")
    counts = relabel_images(str(raw), Sharpness(), raw.with_name("pairs.jsonl"), margin=1e-3)
    assert counts["pairs"] == 6
    return raw.with_name("pairs.jsonl")


def fit(module: ImagePreferenceModule, data: ImagePreferenceDataModule, steps: int) -> list[float]:
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, callbacks=[losses],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return losses.values


def test_the_sharper_photograph_wins_in_every_batch(pairs: Path, tmp_path: Path) -> None:
    data = ImagePreferenceDataModule(
        str(pairs), val=0.3, geometry=Geometry(buckets=[[48, 48], [32, 48]], crop="shared-random", flip=0.5),
        batch_size=2, drop_last=False, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    data.setup("fit")
    seen = 0
    for batch in [*data.train_dataloader(), *iter(data.val_dataloader())]:
        better, worse = (Sharpness().score(batch["caption"], list(batch["pixels"][:, k])) for k in (0, 1))
        assert (better > worse).all()
        assert batch["time_ids"][:, :2].max() <= 200
        assert batch["pixels"].std() > 0.2
        seen += len(better)
    assert seen == 6
    assert data.stats("train")["reshaped"] == 0


def test_from_photographs_to_an_adapter_that_diffusers_loads(pairs: Path, tmp_path: Path) -> None:
    policy = Diffusion(tiny="sd", lora={"r": 2, "lora_alpha": 6})
    module = ImagePreferenceModule(policy, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    data = ImagePreferenceDataModule(
        str(pairs), val=0.3, geometry=Geometry(32, flip=0.5), batch_size=2, cache_dir=str(tmp_path / "cache")
    )
    losses = fit(module, data, 4)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert len(set(losses)) == 4
    assert module._conditioner is None, "with a cache the encoders are not needed in training"
    module.export(tmp_path / "adapter")
    pipe = policy.pipeline(Diffusion(tiny="sd")())
    pipe.load_lora_weights(str(tmp_path / "adapter"))
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 7, 8, generator=generator),
    )
    with torch.no_grad():
        expected, found = (network.eval()(*inputs).sample for network in (module.policy, pipe.unet))
        with adapters_disabled(module.policy):
            before = module.policy(*inputs).sample
    assert torch.equal(found, expected)
    assert not torch.equal(before, expected)


def test_losses_with_and_without_a_cache_are_the_same(pairs: Path, tmp_path: Path) -> None:
    geometry = Geometry([32, 48], crop="shared-random", flip=0.5)
    options: dict[str, Any] = {"geometry": geometry, "caption_dropout": 0.3}
    found = []
    for cache in (True, False):
        policy = Diffusion(tiny="sdxl", lora={"r": 2})
        optimizer = lambda p: torch.optim.Adam(p, lr=1e-3)  # noqa: E731
        module = ImagePreferenceModule(policy, DPO(beta=100.0), optimizer=optimizer)  # 5000 would show last digits
        data = ImagePreferenceDataModule(
            str(pairs), batch_size=2, cache=cache, cache_dir=str(tmp_path / "cache"), **options
        )
        found.append(fit(module, data, 5))
        assert (module._conditioner is None) == cache
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(set(found[0])) == 5
