"""The transformer of Stable Diffusion 3."""

from __future__ import annotations

from torch import Tensor, nn

from pl_prefopt.diffusion.families.base import Condition, Family, cast, run_denoiser


class SD3(Family):
    """SD3Transformer2DModel, rectified flow."""

    output_layer = "proj_out"
    text_keys = ("prompt_embeds", "pooled")

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity."""
        return run_denoiser(
            network, x_t, t * self.process.steps, cond, pooled_projections=cast(network, cond["pooled"])
        )
