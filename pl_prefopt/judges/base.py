"""`Judge`: conditions and samples in, one score per sample out, higher is better."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.utilities.configurable import Configurable


class Judge(Configurable):
    """Scores samples of any modality: texts, or images (3, H, W) in [0, 1].

    A judge with arguments is a `@dataclass`, so that YAML and checkpoints can name it. Models are loaded at the first
    call, not when the judge is built.
    """

    @abstractmethod
    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        """Scores (B,) of `samples` (B), each for the condition of its row; higher is better, any unit."""


def judged(judge: Judge, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
    """Score samples with a judge, (B,) float32 on the CPU, and check what it returns.

    Args:
        judge: any judge.
        conditions: B prompts or captions.
        samples: B samples.

    Raises:
        ValueError: conditions and samples of different number; scores of another shape than (B,), NaN or infinite.
    """
    name = type(judge).__name__
    if len(conditions) != len(samples):
        raise ValueError(
            f"conditions of {name} must be one per sample, got {len(conditions)} for {len(samples)} samples"
        )
    scores = torch.as_tensor(judge.score(conditions, samples)).detach().float().cpu()
    if scores.shape != (len(samples),):
        raise ValueError(
            f"{name}.score must return one number per sample, ({len(samples)},), got shape {tuple(scores.shape)}"
        )
    bad_rows = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad_rows:
        row = bad_rows[0]
        raise ValueError(
            f"{name}.score must return finite numbers, got {scores[row].item()} in row {row} (of {len(bad_rows)} such "
            f"rows), for the condition {_short(conditions[row])} and the sample {_short(samples[row])}"
        )
    return scores


def _short(value: object, limit: int = 80) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} in [{value.min().item():g}, {value.max().item():g}]"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
