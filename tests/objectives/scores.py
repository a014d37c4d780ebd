"""Scores of three groups with all that a module of token log-probabilities can give."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.scores import PairScores


def scores(k: int = 2, **columns: Tensor) -> PairScores:
    """Three groups of k samples."""
    g = torch.Generator().manual_seed(k)
    lengths = torch.randint(2, 9, (3, k), generator=g)
    logps = -2.0 * lengths * torch.rand(3, k, generator=g) - 0.1
    ref = logps + torch.randn(3, k, generator=g)
    kl, collision = torch.rand(3, k, generator=g), -torch.rand(3, k, generator=g)
    return PairScores(
        logratios=logps - ref,
        logps=logps,
        ref_logps=ref,
        sum_logps=logps,
        lengths=lengths,
        kl=kl,
        collision=collision,
        columns=columns,
    )


S = scores()
W, R = S.chosen, S.rejected
assert S.kl is not None
assert S.logps is not None
assert S.lengths is not None
assert S.collision is not None
MEANS = S.logps / S.lengths
