"""What a judge is: conditions and samples in, one number each out, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.utilities.configurable import Configurable


class Judge(Configurable, ABC):
    """Scores samples of any modality: texts, or pictures (3, H, W) in [0, 1].

    Each argument of `__init__` is kept under its own name, so that YAML and checkpoints can name a judge. Models are
    loaded at the first call, not in `__init__`.
    """

    @abstractmethod
    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        """Scores (B,) of `samples` (B), each for the condition of its row; higher is better, any unit."""


def judged(judge: Judge, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
    """Scores (B,) of a judge, float32 on the CPU, after checking them.

    Args:
        judge: any judge.
        conditions: B prompts or captions.
        samples: B samples.

    Raises:
        ValueError: conditions and samples of different number; scores that are no (B,) numbers, NaN or infinite.
    """
    name = type(judge).__name__
    if len(conditions) != len(samples):
        raise ValueError(
            f"{name} was given {len(conditions)} conditions and {len(samples)} samples; give one per sample"
        )
    scores = torch.as_tensor(judge.score(conditions, samples)).detach().float().cpu()
    if scores.shape != (len(samples),):
        raise ValueError(
            f"{name}.score returned the shape {tuple(scores.shape)} for {len(samples)} samples; it must return one "
            f"number per sample, ({len(samples)},)"
        )
    wrong = (~scores.isfinite()).nonzero().flatten().tolist()
    if wrong:
        row = wrong[0]
        raise ValueError(
            f"{name}.score returned {scores[row].item()} in row {row} (of {len(wrong)} such rows), for the condition "
            f"{_short(conditions[row])} and the sample {_short(samples[row])}; a score must be a finite number"
        )
    return scores


def _short(value: Any, limit: int = 80) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} in [{value.min().item():g}, {value.max().item():g}]"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
