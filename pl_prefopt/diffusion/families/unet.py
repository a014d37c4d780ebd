"""UNets of Stable Diffusion."""

from __future__ import annotations

from torch import Tensor, nn

from pl_prefopt.diffusion.families.base import Condition, Family, cast, run_denoiser


class UNet(Family):
    """UNet2DConditionModel with cross-attention on one text encoder: SD 1.5, SD 2, pixel models."""

    output_layer = "conv_out"
    channels_first = True

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise, velocity or data."""
        return run_denoiser(network, x_t, t, cond)


class UNetXL(Family):
    """SDXL: two text encoders, a pooled embedding, and sizes and crops as time ids."""

    output_layer = "conv_out"
    channels_first = True
    text_keys = ("prompt_embeds", "pooled")
    condition_keys = ("time_ids",)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise, velocity or data."""
        added = {"text_embeds": cast(network, cond["pooled"]), "time_ids": cast(network, cond["time_ids"])}
        return run_denoiser(network, x_t, t, cond, added_cond_kwargs=added)
