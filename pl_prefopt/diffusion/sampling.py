"""Pictures from captions, the same for the same seed, whatever is drawn beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.families import Condition, Family
from pl_prefopt.utilities.modes import eval_mode
from pl_prefopt.utilities.seeding import keyed_generator

Size = tuple[int, int]


@torch.no_grad()
def draw(
    family: Family,
    network: nn.Module,
    conditioner: Any,
    captions: Sequence[str],
    *,
    count: int = 1,
    steps: int = 20,
    guidance: float = 5.0,
    size: Size | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """Draw `count` pictures for every caption; the global random state is left as it was.

    A picture depends on (seed, caption, how often the caption stood before, number of the picture) only.

    Args:
        family: how the network is called.
        network: the denoiser, with its adapters as they are.
        conditioner: text encoders and VAE.
        captions: at least one.
        count: pictures per caption, >= 1.
        steps: of the sampler, DDIM for diffusion and Euler for flow, >= 1.
        guidance: classifier-free guidance, e = e_empty + guidance (e_caption - e_empty); 1 is off. Networks that were
            distilled to take it are told it instead.
        size: (height, width) in pixels; None takes what the network's configuration names.
        seed: key of the draws.
        batch_size: pictures per call of the network.

    Returns:
        (N, count, 3, H, W) float32 in [0, 1], on the device of the conditioner.

    Raises:
        ValueError: a count, number of steps or size out of range, no caption.
    """
    if isinstance(captions, str) or not len(captions):
        raise ValueError(f"captions must be a list of at least one caption, got {captions!r}")
    if count < 1 or steps < 1 or batch_size < 1:
        raise ValueError(f"count, steps and batch_size must be >= 1, got {count}, {steps} and {batch_size}")
    height, width = default_size(network, conditioner) if size is None else size
    unit = conditioner.factor * family.multiple
    if height % unit or width % unit:
        raise ValueError(f"size must be multiples of {unit} (height, width), got ({height}, {width})")
    shape = (conditioner.channels, height // conditioner.factor, width // conditioner.factor)
    seen: Counter[str] = Counter()
    keys: list[tuple[str, int, int]] = []
    for caption in captions:
        keys += [(caption, seen[caption], k) for k in range(count)]
        seen[caption] += 1
    parts = []
    with eval_mode(network):
        for start in range(0, len(keys), batch_size):
            some = keys[start : start + batch_size]
            generators = [keyed_generator(seed, "sample", *key) for key in some]
            cond, empty = _conditions(conditioner, [key[0] for key in some], (height, width))
            made = family.generate(network, cond, empty, shape, generators, steps=steps, guidance=guidance)
            parts.append(conditioner.decode(made))
    return torch.cat(parts).unflatten(0, (len(captions), count))


def default_size(network: Any, conditioner: Any) -> Size:
    """Pixels (height, width) that the network's configuration was made for; 128 latents where it names none."""
    latents = getattr(network.config, "sample_size", None) or 128
    height, width = (latents, latents) if isinstance(latents, int) else latents
    return height * conditioner.factor, width * conditioner.factor


def _conditions(conditioner: Any, captions: list[str], size: Size) -> tuple[Condition, Condition]:
    """Conditions of captions and of no caption, with SDXL's sizes: whole pictures, not cropped."""
    ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=conditioner.device)
    sizes = {"time_ids": ids.expand(len(captions), -1)}
    return conditioner.encode_text(captions) | sizes, conditioner.unconditional(len(captions)) | sizes


def denoise(
    family: Family,
    network: Any,
    cond: Condition,
    empty: Condition,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Latents (N, C, h, w) float32 from noise of that shape, by the sampler of the family's process."""
    distilled = bool(getattr(network.config, "guidance_embeds", False))
    sampler, times = family.process.sampler(steps, noise.shape[-2] * noise.shape[-1] // family.multiple**2)
    if distilled:
        cond = {**cond, "guidance": torch.full((len(noise),), float(guidance), device=noise.device)}
    both = guidance != 1 and not distilled
    if both:
        cond = {key: torch.cat([value, empty[key].to(value)]) for key, value in cond.items()}
    x = noise
    for t, when in zip(sampler.timesteps, times, strict=True):
        rows = torch.cat([x, x]) if both else x
        given = family.predict(network, rows, when.to(x.device).expand(len(rows)), cond).float()
        if both:
            told, untold = given.chunk(2)
            given = untold + guidance * (told - untold)
        x = sampler.step(given, t, x).prev_sample
    return x
