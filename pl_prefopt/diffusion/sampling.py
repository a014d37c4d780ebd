"""Samples from captions, the same for the same seed, whatever is drawn beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.conditioner import Conditioner, PipelineConditioner
from pl_prefopt.diffusion.families import Family
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.seeding import keyed_generator

Size = tuple[int, int]


@torch.no_grad()
def draw(
    family: Family,
    network: nn.Module,
    conditioner: Conditioner,
    captions: Sequence[str],
    shape: tuple[int, ...],
    *,
    conditions: Mapping[str, Tensor] | None = None,
    count: int = 1,
    steps: int = 20,
    guidance: float = 5.0,
    seed: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """Draw `count` samples for every caption; the global random state is left as it was.

    A sample depends on (seed, caption, how often the caption stood before, number of the sample) only.

    Args:
        family: how the network is called.
        network: the denoiser, with its adapters as they are.
        conditioner: encodes captions and decodes latents.
        captions: at least one.
        shape: (C, *latent) of a sample.
        conditions: further conditions by name, (1, ...) each, the same for all samples.
        count: samples per caption, >= 1.
        steps: of the sampler, DDIM for diffusion and Euler for flow, >= 1.
        guidance: classifier-free guidance, e = e_empty + guidance (e_caption - e_empty); 1 is off. Guidance-distilled
            networks receive the scale as an input instead.
        seed: key of the draws.
        batch_size: samples per call of the network.

    Returns:
        (N, count, ...) as `conditioner.decode` gives them.

    Raises:
        ValueError: a count or number of steps out of range, latents that the family cannot take, no caption.
    """
    if isinstance(captions, str) or not len(captions):
        raise ValueError(f"captions must be a list of at least one caption, got {captions!r}")
    for name, value in (("count", count), ("steps", steps), ("batch_size", batch_size)):
        integer(name, value)
    family.check_latents(shape)
    repeats: Counter[str] = Counter()
    keys: list[tuple[str, int, int]] = []
    for caption in captions:
        keys += [(caption, repeats[caption], number) for number in range(count)]
        repeats[caption] += 1
    samples = []
    with eval_mode(network):
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            generators = [keyed_generator(seed, "sample", *key) for key in batch]
            extra = {name: value.expand(len(batch), *value.shape[1:]) for name, value in (conditions or {}).items()}
            cond = conditioner.encode_text([caption for caption, _, _ in batch]) | extra
            empty = conditioner.unconditional(len(batch)) | extra
            latents = family.generate(network, cond, empty, shape, generators, steps=steps, guidance=guidance)
            samples.append(conditioner.decode(latents))
    return torch.cat(samples).unflatten(0, (len(captions), count))


def draw_images(
    family: Family,
    network: nn.Module,
    conditioner: PipelineConditioner,
    captions: Sequence[str],
    *,
    size: Size | None = None,
    **options: Any,
) -> Tensor:
    """Images (N, count, 3, H, W) float32 in [0, 1]; options are those of `draw`.

    Args:
        family: how the network is called.
        network: the denoiser.
        conditioner: text encoders and VAE.
        captions: at least one.
        size: (height, width) in pixels; None takes what the network's configuration names.
        options: count, steps, guidance, seed, batch_size.

    Raises:
        ValueError: a size that is no multiple of what VAE and network need, or any of `draw`.
    """
    height, width = default_size(network, conditioner) if size is None else size
    unit = conditioner.factor * family.multiple
    if height % unit or width % unit:
        raise ValueError(f"size must be multiples of {unit} (height, width), got ({height}, {width})")
    # SDXL is told original size, crop and target size: whole images, not cropped
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=conditioner.device)
    conditions = {"time_ids": time_ids} if "time_ids" in family.condition_keys else None
    shape = conditioner.latent_shape((height, width))
    return draw(family, network, conditioner, captions, shape, conditions=conditions, **options)


def default_size(network: Any, conditioner: PipelineConditioner) -> Size:
    """Pixels (height, width) that the network's configuration was made for; 128 latents where it names none."""
    latents = getattr(network.config, "sample_size", None) or 128
    height, width = (latents, latents) if isinstance(latents, int) else latents
    return height * conditioner.factor, width * conditioner.factor
