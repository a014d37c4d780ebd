"""Families of denoisers: how a network is called, and with which noise process.

A condition is a dict of tensors, rows first: `prompt_embeds` (B, L, D), and where the family has them `pooled` (B, P)
and `time_ids` (B, 6); `guidance` (B,) for guidance-distilled transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.processes import Process

Condition = Mapping[str, Tensor]


class Family(ABC):
    """A kind of denoiser: its noise process and the call of its network.

    Args:
        process: how data become noise.
    """

    output_layer: str
    """Name of the sub-module whose input is what `pair_hidden_states` shows."""
    text_keys: tuple[str, ...] = ("prompt_embeds",)
    """Entries of a condition that come from the text encoders."""
    multiple: int = 1
    """Latent height and width must be multiples of this."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @abstractmethod
    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's prediction for (N, C, h, w) at timesteps t (N,), in the network's dtype."""

    def draw(
        self, generator: torch.Generator, shape: tuple[int, int, int], level: Callable[[int], Tensor]
    ) -> dict[str, Tensor]:
        """The random numbers of one row, shared by its samples and by policy and reference.

        Args:
            generator: the row's own, on the CPU.
            shape: (C, h, w) of a latent.
            level: draws so many noise levels in [0, 1), float64.

        Returns:
            `t` (), the row's timestep, and `noise` (C, h, w); families may add or replace entries except `t`.
        """
        return {"t": self.process.timestep(level(1))[0], "noise": torch.randn(shape, generator=generator)}

    def residual(self, network: nn.Module, x0: Tensor, draws: dict[str, Tensor], cond: Condition) -> Tensor:
        """Prediction minus target, (N, ...) float32, for clean latents (N, C, h, w) and draws stacked over rows."""
        t, noise = draws["t"], draws["noise"]
        prediction = self.predict(network, self.process.noised(x0, noise, t), t, cond)
        return prediction.float() - self.process.target(x0, noise, t).float()

    def features(self, network: nn.Module, x0: Tensor, draws: dict[str, Tensor], cond: Condition) -> Tensor:
        """(N, positions, D) input of the network's output layer, for the same arguments as `residual`."""
        hidden = self.output_input(network, x0, draws, cond)
        return hidden.flatten(2).transpose(1, 2) if hidden.dim() == 4 else hidden

    def output_input(self, network: nn.Module, x0: Tensor, draws: dict[str, Tensor], cond: Condition) -> Tensor:
        """What the output layer is given, in the network's own layout."""
        seen: list[Tensor] = []
        hook = network.get_submodule(self.output_layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.residual(network, x0, draws, cond)
        finally:
            hook.remove()
        (hidden,) = seen
        return hidden

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
        """Latents (N, C, h, w) for N conditions; `empty` is what guidance subtracts, `generators` belong to rows."""
        from pl_prefopt.diffusion.sampling import denoise

        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(cond["prompt_embeds"].device)
        return denoise(self, network, cond, empty, noise, steps=steps, guidance=guidance)

    def timestep(self, u: Tensor) -> Tensor:
        """(B,) noise levels in [0, 1) -> (B,) timesteps."""
        return self.process.timestep(u)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of rows (B, ...)."""
        return self.process.noised(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The regression target of rows (B, ...)."""
        return self.process.target(x0, noise, t)


class UNet(Family):
    """UNet2DConditionModel with cross-attention on one text encoder: SD 1.5, SD 2, pixel models."""

    output_layer = "conv_out"

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise, velocity or data."""
        return _run(network, x_t, t, cond)


class UNetXL(Family):
    """SDXL: two text encoders, a pooled embedding, and sizes and crops as time ids."""

    output_layer = "conv_out"
    text_keys = ("prompt_embeds", "pooled")

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise, velocity or data."""
        added = {"text_embeds": _cast(network, cond["pooled"]), "time_ids": _cast(network, cond["time_ids"])}
        return _run(network, x_t, t, cond, added_cond_kwargs=added)


class SD3(Family):
    """SD3Transformer2DModel, rectified flow."""

    output_layer = "proj_out"
    text_keys = ("prompt_embeds", "pooled")

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity."""
        return _run(network, x_t, t * self.process.steps, cond, pooled_projections=_cast(network, cond["pooled"]))


class Flux(Family):
    """FluxTransformer2DModel, rectified flow on 2 x 2 patches of latents.

    Args:
        process: how data become noise.
        guidance: scale told to guidance-distilled networks where the condition names none.
    """

    output_layer = "proj_out"
    text_keys = ("prompt_embeds", "pooled")
    multiple = 2

    def __init__(self, process: Process, guidance: float = 3.5) -> None:
        super().__init__(process)
        self.guidance = guidance

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
        extra: dict[str, Any] = {"pooled_projections": _cast(network, cond["pooled"]), "img_ids": ids}
        extra["txt_ids"] = ids.new_zeros(cond["prompt_embeds"].shape[1], 3)
        if network.config.guidance_embeds:  # type: ignore[union-attr]
            extra["guidance"] = cond.get("guidance", torch.full((n,), self.guidance, device=x_t.device))
        return FluxPipeline._unpack_latents(_run(network, packed, t, cond, **extra), h, w, 1)


def dtype_of(network: nn.Module) -> torch.dtype:
    """Dtype of the first weight; `network.dtype` of diffusers walks through all modules at every call."""
    return next(network.parameters()).dtype


def _cast(network: nn.Module, value: Tensor) -> Tensor:
    return value.to(dtype_of(network))


def _run(network: nn.Module, x: Tensor, t: Tensor, cond: Condition, **extra: Any) -> Tensor:
    """Call a diffusers denoiser."""
    text = _cast(network, cond["prompt_embeds"])
    return network(_cast(network, x), timestep=t, encoder_hidden_states=text, return_dict=False, **extra)[0]
