"""The masked autoregressive family: tokens, masks and per-token noise in place of one noisy image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.families.base import Condition, Family, dtype_of
from pl_prefopt.diffusion.processes import VariancePreserving
from pl_prefopt.experimental.lightgen.unmasking import unmask

MASK_MEAN, MASK_STD, MASK_LOW, MASK_HIGH = 1.0, 0.25, 0.7, 1.0


class MaskedTokens(Family):
    """MaskedAutoregressive networks: the error is the mean over masked tokens of the head's noise error.

    What is random per row, and so shared by winner and loser and by policy and reference: the mask (its ratio is
    truncated normal, mean 1, std .25, in [.7, 1]; LightGen, 2503.08619), the timestep of every token, the noise,
    whether the caption is dropped; each `repeats` times for one mask where a token is concerned. That all of these are
    shared in LightGen's second stage is unverified: its code is not public.

    Args:
        patch: latent positions per side of a token.
        repeats: draws of timestep and noise for one mask.
        text_drop: probability that a row sees the learned empty caption.
        clip: bound of the estimate of a clean token in sampling; None does not bound it.
        iterations: steps in which a sample's tokens become known.
    """

    output_layer = "head.leave"
    process: VariancePreserving

    def __init__(
        self,
        patch: int,
        repeats: int = 4,
        text_drop: float = 0.0,
        clip: float | None = None,
        iterations: int = 64,
    ) -> None:
        super().__init__(VariancePreserving(cosine_scheduler(clip)))
        self.patch = patch
        self.multiple = patch
        self.repeats = repeats
        self.text_drop = text_drop
        self.iterations = iterations

    def draw(
        self, generator: torch.Generator, shape: tuple[int, int, int], level: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        """The random numbers of one row with latents of `shape` (C, h, w): mask (S,), times (R, S), noise (R, S, D).

        `t` () is the timestep of the mean level over masked tokens; every token has a level.
        """
        channels, height, width = shape
        size, count = channels * self.patch**2, (height // self.patch) * (width // self.patch)
        ratio = torch.nn.init.trunc_normal_(
            torch.empty(()), MASK_MEAN, MASK_STD, MASK_LOW, MASK_HIGH, generator=generator
        )
        masked = torch.zeros(count, dtype=torch.bool)
        masked[torch.randperm(count, generator=generator)[: max(1, math.ceil(float(ratio) * count))]] = True
        levels = level(self.repeats * count).view(self.repeats, count)
        times = self.process.timestep(levels)
        return {
            "masked": masked,
            "times": times,
            "t": self.process.timestep(levels[:, masked].mean()),
            "noise": torch.randn(self.repeats, count, size, generator=generator),
            "text_drop": torch.rand((), generator=generator) < self.text_drop,
        }

    def residual(self, network: Any, x0: Tensor, draws: dict[str, Tensor], cond: Condition) -> Tensor:
        """(N, R, S, D) float32, noise error at masked tokens times sqrt(S / masked), zero at visible ones.

        The mean of its square is therefore the mean over masked tokens, Σ(loss · mask) / Σ mask.
        """
        clean = network.patchify(x0).unsqueeze(1).expand_as(draws["noise"])
        noisy = self.process.noised(clean.flatten(0, -2), draws["noise"].flatten(0, -2), draws["times"].flatten())
        dtype = dtype_of(network)
        prediction = network(
            x0.to(dtype),
            draws["masked"],
            noisy.view_as(clean).to(dtype),
            draws["times"],
            cond["prompt_embeds"].to(dtype),
            draws["text_drop"],
        )
        masked = draws["masked"].float()
        scale = masked * (masked.shape[1] / masked.sum(1, keepdim=True)).sqrt()
        return (prediction.float() - draws["noise"]) * scale[:, None, :, None]

    def features(self, network: nn.Module, x0: Tensor, draws: dict[str, Tensor], cond: Condition) -> Tensor:
        """(N, R * S, D) input of the head's last layer."""
        return self.output_input(network, x0, draws, cond).flatten(1, 2)

    def generate(
        self,
        network: nn.Module,
        cond: Condition,
        empty: Condition,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        *,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Latents (N, C, h, w), a few tokens at a time; guidance subtracts the learned empty caption, not `empty`."""
        options: dict[str, Any] = {"iterations": self.iterations, "steps": steps, "guidance": guidance}
        return unmask(network, self.process.scheduler, cond, shape, generators, **options)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Not defined.

        Raises:
            ValueError: always; a token's noise depends on the mask and the clean tokens.
        """
        raise ValueError("a masked autoregressive network has no prediction without a mask; use residual()")


def cosine_scheduler(clip: float | None = None) -> Any:
    """The head's noise schedule: squared cosine, 1000 steps, noise prediction."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    bounds = {"clip_sample": clip is not None, "clip_sample_range": 1.0 if clip is None else clip}
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", **bounds)
