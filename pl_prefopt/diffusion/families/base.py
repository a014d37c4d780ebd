"""How a denoiser is called, and its noise process.

A condition is a dict of tensors, rows first: `prompt_embeds` (B, L, D), and where the family has them `prompt_mask`
(B, L), `pooled` (B, P), `time_ids` (B, 6), durations, ...; `guidance` (B,) for guidance-distilled transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.processes import Process

Condition = Mapping[str, Tensor]
Draws = dict[str, Tensor]


class Family(ABC):
    """A kind of denoiser: its noise process and the call of its network.

    Args:
        process: how data become noise.
    """

    output_layer: ClassVar[str]
    """Name of the submodule whose input is what `pair_hidden_states` shows."""
    channels_first: ClassVar[bool] = False
    """Layout of that input: (N, D, *positions) as convolutions have it, else (N, positions, D)."""
    text_keys: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    """Entries of a condition that come from the text encoders."""
    condition_keys: ClassVar[tuple[str, ...]] = ()
    """Entries of a condition that come with the data: sizes, durations, ..."""
    dimensions: ClassVar[int] = 2
    """Axes of a latent behind its channels: 1 (sound), 2 (images, spectrograms) or 3 (video, volumes)."""
    multiple: int = 1
    """Every one of these axes must be a multiple of this."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @abstractmethod
    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's prediction for (N, C, *latent) at timesteps t (N,), in the network's dtype."""

    def check_latents(self, shape: Sequence[int]) -> None:
        """Refuse latents (C, *latent) that the network cannot take.

        Raises:
            ValueError: another number of axes, or a size that is no multiple of `multiple`.
        """
        sizes = tuple(shape[1:])
        if len(sizes) != self.dimensions:
            raise ValueError(
                f"latents must have channels and {self.dimensions} further axes for {type(self).__name__}, got shape "
                f"{tuple(shape)}"
            )
        if any(size % self.multiple for size in sizes):
            raise ValueError(
                f"latents must have sizes that are multiples of {self.multiple} for {type(self).__name__}, got "
                f"{sizes}. Change the resolution or the length of the data."
            )

    def draw(self, generator: torch.Generator, shape: tuple[int, ...], level: Callable[[int], Tensor]) -> Draws:
        """The random numbers of one row, shared by its samples and by policy and reference.

        Args:
            generator: the row's own, on the CPU.
            shape: (C, *latent).
            level: draws so many noise levels in [0, 1), float64.

        Returns:
            `t` (), the row's timestep, and `noise` (C, *latent); families may add or replace entries except `t`.
        """
        return {"t": self.process.timestep(level(1))[0], "noise": torch.randn(shape, generator=generator)}

    def residual(self, network: nn.Module, x0: Tensor, draws: Draws, cond: Condition) -> Tensor:
        """Prediction minus target, (N, ...) float32, for clean latents (N, C, *latent) and draws stacked over rows."""
        t, noise = draws["t"], draws["noise"]
        prediction = self.predict(network, self.process.noised(x0, noise, t), t, cond)
        return prediction.float() - self.process.target(x0, noise, t).float()

    def features(self, network: nn.Module, x0: Tensor, draws: Draws, cond: Condition) -> Tensor:
        """(N, positions, D) input of the network's output layer, for the same arguments as `residual`.

        Raises:
            ValueError: the output layer is given something of another shape than the family says.
        """
        hidden = self.output_input(network, x0, draws, cond)
        axes = 2 + self.dimensions if self.channels_first else 3
        if hidden.dim() != axes:
            raise ValueError(
                f"{type(self).__name__}.{self.output_layer} must be given {axes} axes, got shape {tuple(hidden.shape)}"
            )
        return hidden.flatten(2).transpose(1, 2) if self.channels_first else hidden

    def output_input(self, network: nn.Module, x0: Tensor, draws: Draws, cond: Condition) -> Tensor:
        """What the output layer is given, in the network's own layout."""
        inputs: list[Tensor] = []
        layer = network.get_submodule(self.output_layer)
        hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            self.residual(network, x0, draws, cond)
        finally:
            hook.remove()
        (hidden,) = inputs
        return hidden

    def generate(
        self,
        network: nn.Module,
        cond: Condition,
        empty: Condition,
        shape: tuple[int, ...],
        generators: Sequence[torch.Generator],
        *,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Latents (N, C, *latent) for N conditions; `empty` is what guidance subtracts, `generators` belong to rows."""
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(cond["prompt_embeds"].device)
        return self.denoise(network, cond, empty, noise, steps=steps, guidance=guidance)

    def sampler(self, steps: int, positions: int) -> tuple[Any, Tensor]:
        """A diffusers scheduler set to `steps` as the family's pipeline does, and its timesteps for the network."""
        return self.process.sampler(steps, positions)

    def denoise(
        self, network: Any, cond: Condition, empty: Condition, noise: Tensor, *, steps: int, guidance: float
    ) -> Tensor:
        """Latents (N, C, *latent) float32 from noise of that shape, by the sampler of the process.

        Classifier-free guidance runs the network on condition and empty condition in one batch. Guidance-distilled
        networks receive the scale as an input instead.
        """
        distilled = bool(getattr(network.config, "guidance_embeds", False))
        sampler, times = self.sampler(steps, noise[0, 0].numel() // self.multiple**self.dimensions)
        if distilled:
            cond = {**cond, "guidance": torch.full((len(noise),), float(guidance), device=noise.device)}
        guided = guidance != 1 and not distilled
        if guided:
            cond = {key: torch.cat([value, empty[key].to(value)]) for key, value in cond.items()}
        x = noise
        for t, time in zip(sampler.timesteps, times, strict=True):
            rows = torch.cat([x, x]) if guided else x
            prediction = self.predict(network, rows, time.to(x.device).expand(len(rows)), cond).float()
            if guided:
                conditional, unconditional = prediction.chunk(2)
                prediction = unconditional + guidance * (conditional - unconditional)
            x = sampler.step(prediction, t, x).prev_sample
        return x


def dtype_of(network: nn.Module) -> torch.dtype:
    """Dtype of the first weight; `network.dtype` of diffusers walks through all modules at every call."""
    return next(network.parameters()).dtype


def cast(network: nn.Module, value: Tensor) -> Tensor:
    return value.to(dtype_of(network))


def run_denoiser(network: nn.Module, x: Tensor, t: Tensor, cond: Condition, **extra: Any) -> Tensor:
    """Call a diffusers denoiser."""
    text = cast(network, cond["prompt_embeds"])
    return network(cast(network, x), timestep=t, encoder_hidden_states=text, return_dict=False, **extra)[0]
