"""Which timesteps are trained on, and how much each of them counts. YAML names these classes."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.diffusion.processes import Process
from pl_prefopt.utilities.configurable import Configurable


class TimestepSampler(Configurable):
    """Draws noise levels u in [0, 1), where 1 is pure noise; the family turns them into timesteps."""

    @abstractmethod
    def draw(self, generator: torch.Generator, turn: int, steps: int, count: int = 1) -> Tensor:
        """Noise levels of one pair, (count,) float64.

        Args:
            generator: the pair's own generator, on the CPU.
            turn: the optimizer step in training, the row's id in evaluation.
            steps: number of training timesteps of the process.
            count: how many; more than one where tokens have levels of their own.
        """


@dataclass
class Uniform(TimestepSampler):
    """u ~ U[low, high), the official choice.

    Args:
        low: in [0, high).
        high: in (low, 1].
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got low={self.low}, high={self.high}")

    def draw(self, generator: torch.Generator, turn: int, steps: int, count: int = 1) -> Tensor:
        """Uniform."""
        return self.low + (self.high - self.low) * _uniform(generator, count)


@dataclass
class LogitNormal(TimestepSampler):
    """u = sigmoid(mean + std z), z ~ N(0, 1): the usual choice for flow matching (SD3, 2403.03206).

    Args:
        mean: location; > 0 favours noise.
        std: scale, > 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be a finite number > 0, got {self.std}")

    def draw(self, generator: torch.Generator, turn: int, steps: int, count: int = 1) -> Tensor:
        """Logit-normal."""
        z = torch.randn(count, generator=generator, dtype=torch.float64)
        return torch.sigmoid(self.mean + self.std * z).clamp(max=1 - 1e-6)


@dataclass
class Turbo(TimestepSampler):
    """t = 250 k + 249, k ~ U{0, 1, 2, 3}: the four timesteps of SDXL-Turbo (2311.12908, released code).

    Args:
        count: number of timesteps, equally spaced, each the last of its part.
    """

    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    def draw(self, generator: torch.Generator, turn: int, steps: int, count: int = 1) -> Tensor:
        """One of the last timesteps of `count` equal parts."""
        part = steps // self.count
        k = (_uniform(generator, count) * self.count).floor().clamp(max=self.count - 1)
        return (part * k + part - 0.5) / steps


@dataclass
class RoundRobin(TimestepSampler):
    """A list of timesteps, one optimizer step each, in turn; evaluation takes them in turn over rows.

    Args:
        values: timesteps in [0, steps), e.g. [801, 694, 548, 338] for flow matching (SimpleTuner).
    """

    values: list[int]

    def __post_init__(self) -> None:
        if not self.values or any(v < 0 for v in self.values):
            raise ValueError(f"values must hold at least one timestep >= 0, got {self.values}")

    def draw(self, generator: torch.Generator, turn: int, steps: int, count: int = 1) -> Tensor:
        """The timestep whose turn it is.

        Raises:
            ValueError: a timestep beyond the schedule.
        """
        value = self.values[turn % len(self.values)]
        if value >= steps:
            raise ValueError(f"values holds timestep {value}, but the schedule has {steps} (0 to {steps - 1})")
        return torch.full((count,), (value + 0.5) / steps, dtype=torch.float64)


class Weighting(Configurable):
    """Weights of squared errors by timestep; the same for both samples and for policy and reference."""

    @abstractmethod
    def weights(self, process: Process, t: Tensor) -> Tensor:
        """(B,) >= 0, finite."""


@dataclass
class MinSNR(Weighting):
    """min(SNR, gamma) times the error in x0 (Hang et al. 2023, 2303.09556), whatever the network predicts.

    Epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1); flow: min(SNR, gamma) s^2.

    Args:
        gamma: > 0; 5 in the paper.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be a finite number > 0, got {self.gamma}")

    def weights(self, process: Process, t: Tensor) -> Tensor:
        """(B,)."""
        return process.epsilon_factor(t) * (self.gamma / process.snr(t)).clamp(max=1.0)


class EpsilonSpace(Weighting):
    """Errors of v, flow or data models measured in noise, so that one beta means the same for all of them.

    VP: e_eps = alpha^2 e_v; flow: e_eps = (1 - s)^2 e_v.
    """

    def weights(self, process: Process, t: Tensor) -> Tensor:
        """(B,)."""
        return process.epsilon_factor(t)


def _uniform(generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, generator=generator).double()
