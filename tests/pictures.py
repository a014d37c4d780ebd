"""Tiny diffusion policies and batches of latents or pixels that the image tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from pl_prefopt.diffusion.conditioner import PipelineConditioner
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.policies import Diffusion

LORA = {"r": 2}
SIZE = 16


def tiny_diffusion(name: str = "sd", lora: bool = True, **options: Any) -> Diffusion:
    """A tiny denoiser, with adapters unless told otherwise."""
    return Diffusion(tiny=name, lora=LORA if lora else None, **options)


def pixel_batch(rows: int = 2, count: int = 2, seed: int = 0, start: int = 0) -> dict[str, Any]:
    """Random pictures (B, K, 3, 16, 16), each row the same whatever the batch it is in."""
    pixels = [
        torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed * 1000 + i))
        for i in range(start, start + rows)
    ]
    return {
        "pixels": torch.stack(pixels) * 2 - 1,
        "caption": [f"picture no. {i}" for i in range(start, start + rows)],
        "time_ids": torch.tensor([[SIZE + i, SIZE, i % 3, 0, SIZE, SIZE] for i in range(start, start + rows)]).float(),
        "index": torch.arange(start, start + rows),
    }


@cache
def _conditioner(name: str) -> PipelineConditioner:
    return Diffusion(tiny=name).conditioner()


def cached(batch: dict[str, Any], policy: Diffusion) -> dict[str, Any]:
    """The same batch with latents and text embeddings in place of pixels."""
    conditioner = _conditioner(str(policy.tiny))
    pixels = batch["pixels"]
    mean, std = (v.unflatten(0, pixels.shape[:2]) for v in conditioner.encode(pixels.flatten(0, 1)))
    rest = {k: v for k, v in batch.items() if k != "pixels"}
    return rest | conditioner.encode_text(batch["caption"]) | {"latents_mean": mean, "latents_std": std}


def module(policy: Diffusion, **options: Any) -> ImagePreferenceModule:
    """A built module in training mode."""
    made = ImagePreferenceModule(policy, **options)
    made.configure_model()
    made.train()
    return made
