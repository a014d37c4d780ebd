"""From a batch of pictures to what a denoiser is scored on; every random number belongs to a row, not to a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.diffusion.families import Family
from pl_prefopt.diffusion.timesteps import TimestepSampler
from pl_prefopt.modules.evaluation import Batch
from pl_prefopt.utilities.seeding import keyed_generator

Draws = dict[str, Tensor]
Condition = dict[str, Tensor]


def row_ids(batch: Batch, size: int) -> list[int]:
    """Ids of the rows in their data set; positions where the batch has none."""
    index = batch.get("index")
    return list(range(size)) if index is None else torch.as_tensor(index).tolist()


def moments(batch: Batch, conditioner: Callable[[], Any], count: int | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, K, C, h, w), float32, of the latent posterior of each sample.

    Args:
        batch: with `latents_mean` and `latents_std`, or with `pixels` (B, K, 3, H, W) in [-1, 1].
        conditioner: gives the VAE where the batch holds pixels.
        count: how many of the K samples are used; None is all.

    Raises:
        ValueError: neither latents nor pixels.
    """
    if "latents_mean" in batch:
        return batch["latents_mean"][:, :count].float(), batch["latents_std"][:, :count].float()
    if "pixels" in batch:
        pixels = batch["pixels"][:, :count]
        mean, std = (v.unflatten(0, pixels.shape[:2]) for v in conditioner().encode_pixels(pixels.flatten(0, 1)))
        return mean, std
    raise ValueError(
        f"the batch has neither latents_mean and latents_std nor pixels; it has {', '.join(sorted(batch))}"
    )


def row_generators(batch: Batch, size: int, seed: int, step: int | None) -> list[torch.Generator]:
    """One generator per row, keyed by seed, optimizer step (None in evaluation) and the row's id."""
    return [keyed_generator(seed, "rows", str(step), i) for i in row_ids(batch, size)]


def posterior_sample(mean: Tensor, std: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Clean latents x0 = mean + std n, n drawn for every sample on its own."""
    noise = torch.stack([torch.randn(mean.shape[1:], generator=g) for g in generators])
    return mean + std * noise.to(mean.device)


def row_draws(
    family: Family,
    sampler: TimestepSampler,
    generators: list[torch.Generator],
    like: Tensor,
    batch: Batch,
    step: int | None,
    offset: float,
) -> Draws:
    """Timestep, noise and whatever else the family draws for each row, stacked over rows.

    `like` (B, K, C, h, w) gives shape and device.
    """
    steps, shape = family.process.steps, tuple(like.shape[2:])
    drawn = []
    for generator, row in zip(generators, row_ids(batch, len(like)), strict=True):
        level = partial(sampler.draw, generator, row if step is None else step, steps)
        one = family.draw(generator, shape, level)  # type: ignore[arg-type]
        if offset:
            one["noise"] = one["noise"] + offset * torch.randn(shape[0], 1, 1, generator=generator)
        drawn.append(one)
    return {name: torch.stack([one[name] for one in drawn]).to(like.device) for name in drawn[0]}


def condition(batch: Batch, family: Family, conditioner: Callable[[], Any], x0: Tensor) -> Condition:
    """Text embeddings, cached or encoded now, and sizes (B, 6), rows first, on the device of x0."""
    if all(name in batch for name in family.text_keys):
        out = {name: batch[name] for name in family.text_keys}
    elif "caption" in batch:
        out = conditioner().encode_text(batch["caption"])
    else:
        raise ValueError(f"the batch has neither caption nor {', '.join(family.text_keys)}")
    if "time_ids" in batch:
        out["time_ids"] = batch["time_ids"]
    return {name: value.to(x0.device) for name, value in out.items()}


def text_drop(batch: Batch, draws: Draws, like: Tensor) -> dict[str, Tensor]:
    """`text_drop` (B,) bool: rows that are trained without caption, dropped by the data or by the family's draw."""
    dropped = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    if "caption" in batch:
        dropped |= torch.tensor([not caption for caption in batch["caption"]], device=like.device)
    return {"text_drop": dropped | draws.get("text_drop", dropped)}
