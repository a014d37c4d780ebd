"""`PairScores`: the one container between a modality and an objective.

Shapes: B pairs (or lists), K samples under one condition. A pair has K = 2: index 0 is chosen, 1 is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class PairScores:
    """What a module knows about B groups of K samples, ready for any objective.

    Args:
        logratios: (B, K) log pi(y|x) - log pi_ref(y|x) in nats, or its denoising surrogate. Without a reference the
            reference term is zero, so this equals `logps`.
        logps: (B, K) log pi(y|x) of the policy, reduced over tokens as the objective asked; None where the modality
            has no tractable likelihood.
        ref_logps: (B, K) the same under the reference, without gradient.
        sum_logps: (B, K) plain sum of the policy's token log-probabilities, whatever the objective's reduction.
        lengths: (B, K) number of tokens that were scored.
        kl: (B, K) sum over positions of KL(ref || policy), only when the objective needs it.
        collision: (B, K) mean over tokens of log p_t - log sum_v p_v^2 under the policy, without gradient (WPO).
        mask: (B, K) bool, False for the padding of ragged lists; None means all real.
        errors: (B, K) denoising error of the policy (diffusion modalities), `ref_errors` that of the reference.
        extra: per-pair columns that came with the data: `weight`, `margin`, `preference_prob` (B,); `relevance`,
            `ranks`, `targets` (B, K); `margins` (B, K, M).
    """

    logratios: Tensor
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    sum_logps: Tensor | None = None
    lengths: Tensor | None = None
    kl: Tensor | None = None
    collision: Tensor | None = None
    mask: Tensor | None = None
    errors: Tensor | None = None
    ref_errors: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def chosen(self) -> Tensor:
        """(B,) log-ratio of the chosen sample."""
        return self.logratios[:, 0]

    @property
    def rejected(self) -> Tensor:
        """(B,) log-ratio of the rejected sample."""
        return self.logratios[:, 1]
