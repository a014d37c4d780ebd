"""How data become noise and what a denoiser is asked for: variance preserving diffusion and rectified flow.

Legend: x0 data, n noise, t the timestep of each row, (B,). Noise level u in [0, 1): 0 is data, 1 is noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


def rowwise(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) that broadcasts against `like`."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


class Process(ABC):
    """A noise process with its regression target."""

    steps: int = 1000
    """Number of training timesteps, the unit in which samplers name timesteps."""

    @abstractmethod
    def timestep(self, u: Tensor) -> Tensor:
        """(B,) noise levels in [0, 1) -> (B,) timesteps of this process."""

    @abstractmethod
    def level(self, t: Tensor) -> Tensor:
        """(B,) timesteps -> (B,) position in [0, 1), for grouping by noise level."""

    @abstractmethod
    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, shaped like x0."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should give, shaped like x0."""

    @abstractmethod
    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of x0 that a prediction stands for."""

    @abstractmethod
    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal to noise ratio, in [0, inf]."""

    @abstractmethod
    def epsilon_factor(self, t: Tensor) -> Tensor:
        """(B,) c with e_eps = c e: the squared error in noise is c times that in this target."""

    @abstractmethod
    def sampler(self, steps: int, positions: int) -> tuple[Any, Tensor]:
        """A diffusers scheduler set to `steps` steps, and its timesteps as the family's networks take them.

        Args:
            steps: >= 1.
            positions: tokens of a sample, for schedules that depend on it.
        """


def _unknown(prediction: str) -> ValueError:
    return ValueError(
        f"prediction_type {prediction!r} is unknown; accepted: {', '.join(PREDICTIONS)} for UNets with a DDPM-like "
        "scheduler (flow matching transformers predict noise minus data and take none). Look into the folder's "
        "scheduler/scheduler_config.json or set prediction_type yourself"
    )


PREDICTIONS = ("epsilon", "v_prediction", "sample")


class VariancePreserving(Process):
    """x_t = alpha_t x0 + sigma_t n with alpha^2 + sigma^2 = 1, by the schedule of a diffusers DDPM scheduler.

    Args:
        scheduler: a diffusers DDPMScheduler.
        prediction: "epsilon", "v_prediction" (alpha n - sigma x0) or "sample"; None takes the scheduler's.

    Raises:
        ValueError: an unknown prediction type.
    """

    def __init__(self, scheduler: Any, prediction: str | None = None) -> None:
        self.scheduler = scheduler
        self.prediction = prediction or scheduler.config.prediction_type
        self.steps = scheduler.config.num_train_timesteps
        if self.prediction not in PREDICTIONS:
            raise _unknown(self.prediction)

    def timestep(self, u: Tensor) -> Tensor:
        """floor(T u), int64."""
        return (u * self.steps).long().clamp(max=self.steps - 1)

    def level(self, t: Tensor) -> Tensor:
        """Share t / T."""
        return t.float() / self.steps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), (B,) each, float32."""
        square = self.scheduler.alphas_cumprod.to(t.device)[t].float()
        return square.sqrt(), (1 - square).sqrt()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Sum alpha x0 + sigma n."""
        return self.scheduler.add_noise(x0, noise, t)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noise, velocity or data."""
        if self.prediction == "v_prediction":
            return self.scheduler.get_velocity(x0, noise, t)
        return noise if self.prediction == "epsilon" else x0

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(x_t - sigma eps) / alpha, alpha x_t - sigma v, or the prediction itself."""
        alpha, sigma = (rowwise(c, x_t) for c in self.coefficients(t))
        if self.prediction == "v_prediction":
            return alpha * x_t - sigma * prediction
        return (x_t - sigma * prediction) / alpha if self.prediction == "epsilon" else prediction

    def snr(self, t: Tensor) -> Tensor:
        """alpha^2 / sigma^2."""
        alpha, sigma = self.coefficients(t)
        return (alpha / sigma) ** 2

    def epsilon_factor(self, t: Tensor) -> Tensor:
        """1 for epsilon, alpha^2 for v, alpha^2 / sigma^2 for data."""
        if self.prediction == "v_prediction":
            return self.coefficients(t)[0] ** 2
        return torch.ones_like(t, dtype=torch.float32) if self.prediction == "epsilon" else self.snr(t)

    def sampler(self, steps: int, positions: int) -> tuple[Any, Tensor]:
        """DDIM that begins at the last timestep."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        options = {"prediction_type": self.prediction, "timestep_spacing": "trailing"}
        scheduler: Any = DDIMScheduler.from_config(self.scheduler.config, **options)
        scheduler.set_timesteps(steps)
        return scheduler, scheduler.timesteps


class Flow(Process):
    """x_t = (1 - s) x0 + s n with target n - x0 (rectified flow); t is s itself, in [0, 1].

    Args:
        scheduler: a diffusers FlowMatchEulerDiscreteScheduler; None: one without a shift.
    """

    def __init__(self, scheduler: Any = None) -> None:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        self.scheduler: Any = scheduler if scheduler is not None else FlowMatchEulerDiscreteScheduler()
        self.steps = self.scheduler.config.num_train_timesteps
        self.shift = 1.0 if self.scheduler.config.use_dynamic_shifting else self.scheduler.config.shift
        """s = shift u / (1 + (shift - 1) u); 3 in SD3. Schedules that shift by resolution train without a shift."""

    def timestep(self, u: Tensor) -> Tensor:
        """The shifted level, float32."""
        u = u.float()
        return self.shift * u / (1 + (self.shift - 1) * u)

    def level(self, t: Tensor) -> Tensor:
        """The level s itself."""
        return t.float()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(1 - s) x0 + s n."""
        s = rowwise(t, x0)
        return (1 - s) * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity n - x0."""
        return noise - x0

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t - s v."""
        return x_t - rowwise(t, x_t) * prediction

    def snr(self, t: Tensor) -> Tensor:
        """((1 - s) / s)^2."""
        return ((1 - t.float()) / t.float()) ** 2

    def epsilon_factor(self, t: Tensor) -> Tensor:
        """(1 - s)^2."""
        return (1 - t.float()) ** 2

    def sampler(self, steps: int, positions: int, sigmas: list[float] | None = None) -> tuple[Any, Tensor]:
        """Euler, shifted as the scheduler says; `sigmas` before the shift, where a pipeline brings its own."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.scheduler.config
        scheduler: Any = type(self.scheduler).from_config(config)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(positions, *(config[name] for name in names))
        options = {"mu": shift} if config.use_dynamic_shifting else {}
        scheduler.set_timesteps(steps, sigmas=sigmas, **options)
        return scheduler, scheduler.timesteps / self.steps
