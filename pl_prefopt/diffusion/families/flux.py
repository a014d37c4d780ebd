"""The transformer of Flux."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.families.base import Condition, Family, cast, dtype_of, run_denoiser
from pl_prefopt.diffusion.processes import Flow, Process


class Flux(Family):
    """FluxTransformer2DModel, rectified flow on 2 x 2 patches of latents.

    Args:
        process: how data become noise.
        guidance: input of guidance-distilled networks where the condition names none.
    """

    output_layer = "proj_out"
    text_keys = ("prompt_embeds", "pooled")
    multiple = 2

    def __init__(self, process: Process, guidance: float = 3.5) -> None:
        super().__init__(process)
        self.guidance = guidance

    def sampler(self, steps: int, positions: int) -> tuple[Any, Tensor]:
        """Sigmas from 1 to 1 / steps, as FluxPipeline gives them to the scheduler."""
        assert isinstance(self.process, Flow)
        return self.process.sampler(steps, positions, sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity.

        Raises:
            ValueError: latents of odd height or width.
        """
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        n, c, h, w = x_t.shape
        if h % 2 or w % 2:
            raise ValueError(f"Flux packs 2 x 2 latents, so height and width must be even, got latents of {h} x {w}")
        packed = FluxPipeline._pack_latents(x_t, n, c, h, w)
        ids = FluxPipeline._prepare_latent_image_ids(n, h // 2, w // 2, x_t.device, dtype_of(network))
        extra: dict[str, Any] = {"pooled_projections": cast(network, cond["pooled"]), "img_ids": ids}
        extra["txt_ids"] = ids.new_zeros(cond["prompt_embeds"].shape[1], 3)
        if network.config.guidance_embeds:  # type: ignore[union-attr]
            extra["guidance"] = cond.get("guidance", torch.full((n,), self.guidance, device=x_t.device))
        return FluxPipeline._unpack_latents(run_denoiser(network, packed, t, cond, **extra), h, w, 1)
