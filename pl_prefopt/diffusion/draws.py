"""From a batch to what a denoiser is scored on; every random number belongs to a row, not to a batch.

Shapes: B rows, K samples of a row, C channels of a latent, behind which 1, 2 or 3 further axes follow (*latent).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.diffusion.conditioner import Conditioner
from pl_prefopt.diffusion.families import Condition, Draws, Family
from pl_prefopt.diffusion.timesteps import TimestepSampler
from pl_prefopt.utilities.seeding import keyed_generator

Batch = Mapping[str, Any]


def row_ids(batch: Batch, size: int) -> list[int]:
    """Ids of the rows in their data set; positions where the batch has none."""
    index = batch.get("index")
    return list(range(size)) if index is None else torch.as_tensor(index).tolist()


def moments(
    batch: Batch, conditioner: Callable[[], Conditioner], sample_key: str, count: int | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, K, C, *latent), float32, of the latent posterior of each sample.

    Args:
        batch: with `latents_mean` and `latents_std`, or with the samples themselves (B, K, ...).
        conditioner: gives the encoder where the batch holds samples.
        sample_key: name of the samples in the batch, such as "pixels".
        count: how many of the K samples are used; None is all.

    Raises:
        ValueError: neither latents nor samples.
    """
    if "latents_mean" in batch:
        return batch["latents_mean"][:, :count].float(), batch["latents_std"][:, :count].float()
    if sample_key in batch:
        samples = batch[sample_key][:, :count]
        mean, std = conditioner().encode(samples.flatten(0, 1))
        return mean.unflatten(0, samples.shape[:2]), std.unflatten(0, samples.shape[:2])
    raise ValueError(
        f"the batch must have latents_mean and latents_std, or {sample_key}, got {', '.join(sorted(batch))}"
    )


def row_generators(batch: Batch, size: int, seed: int, step: int | None) -> list[torch.Generator]:
    """One generator per row, keyed by seed, optimizer step (None in evaluation) and the row's id."""
    return [keyed_generator(seed, "rows", str(step), i) for i in row_ids(batch, size)]


def posterior_sample(mean: Tensor, std: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Clean latents x0 = mean + std n, with independent n for every sample."""
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

    Args:
        family: what is drawn.
        sampler: of noise levels.
        generators: one per row.
        like: (B, K, C, *latent), gives shape and device.
        batch: for the row ids.
        step: optimizer step; None in evaluation.
        offset: this times one normal number per channel is added to the noise.
    """
    shape = tuple(like.shape[2:])
    rows = []
    for generator, row in zip(generators, row_ids(batch, len(like)), strict=True):
        level = partial(sampler.draw, generator, row if step is None else step, family.process.steps)
        draws = family.draw(generator, shape, level)
        if offset:
            per_channel = torch.randn(shape[0], *[1] * len(shape[1:]), generator=generator)
            draws["noise"] = draws["noise"] + offset * per_channel
        rows.append(draws)
    return {name: torch.stack([draws[name] for draws in rows]).to(like.device) for name in rows[0]}


def conditions(
    batch: Batch, family: Family, conditioner: Callable[[], Conditioner], device: torch.device
) -> dict[str, Tensor]:
    """Text embeddings, cached or encoded now, and the further conditions that the family takes; rows first.

    Raises:
        ValueError: neither captions nor embeddings, or a condition that the family cannot do without.
    """
    if all(name in batch for name in family.text_keys):
        values = {name: batch[name] for name in family.text_keys}
    elif "caption" in batch:
        values = conditioner().encode_text(batch["caption"])
    else:
        raise ValueError(
            f"the batch must have caption or {', '.join(family.text_keys)}, got {', '.join(sorted(batch))}"
        )
    absent = [name for name in family.condition_keys if name not in batch and name not in values]
    if absent:
        raise ValueError(
            f"the batch must have {', '.join(absent)}, which {type(family).__name__} is conditioned on, got "
            f"{', '.join(sorted(batch))}"
        )
    values |= {name: batch[name] for name in family.condition_keys if name in batch}
    return {name: value.to(device) for name, value in values.items()}


def text_drop(batch: Batch, draws: Draws, like: Tensor) -> dict[str, Tensor]:
    """`text_drop` (B,) bool: rows that are trained without caption, dropped by the data or by the family's draw."""
    dropped = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    if "caption" in batch:
        dropped |= torch.tensor([not caption for caption in batch["caption"]], device=like.device)
    return {"text_drop": dropped | draws.get("text_drop", dropped)}


def per_sample(values: Condition, count: int) -> dict[str, Tensor]:
    """Rows (B, ...) repeated for their K samples, (B * K, ...)."""
    return {name: value.repeat_interleave(count, 0) for name, value in values.items()}
