"""TRL's and Liger's preference losses on given log-probabilities, without a trainer's constructor, model or data.

TRL 1.16 keeps its losses inside `DPOTrainer._compute_loss`; the stub below gives that method the attributes it reads.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def padded(tokens: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Per-token values of each row, padded with zeros (rows, T), and their mask."""
    width = max(len(row) for row in tokens)
    values = torch.tensor([row + [0.0] * (width - len(row)) for row in tokens], dtype=torch.float64)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
    return values, mask


class TRL:
    """`DPOTrainer._compute_loss` as a function of per-token log-probabilities."""

    def __init__(self) -> None:
        from accelerate import Accelerator
        from trl.trainer.dpo_trainer import DPOTrainer

        self.trainer = DPOTrainer
        self.accelerator = Accelerator(cpu=True)

    def loss(
        self, tokens: Tensor, mask: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, loss_type: str,
        *, log_sum_sq: Tensor | None = None, **attributes: Any,
    ) -> Tensor:  # fmt: skip
        """Mean loss of B pairs; rows of `tokens` (2B, T) are the chosen ones, then the rejected ones.

        `ref_*` (B,) are reference sums. One dummy prompt position stands before the completion.
        """
        trainer = object.__new__(self.trainer)
        fixed = {
            "accelerator": self.accelerator, "model": SimpleNamespace(training=False), "aux_loss_enabled": False,
            "precompute_ref_logps": True, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
            "ld_alpha": None, "use_weighting": False, "label_smoothing": 0.0, "beta": 0.1, "loss_types": [loss_type],
            "loss_weights": [1.0], "args": SimpleNamespace(discopop_tau=attributes.pop("discopop_tau", 0.05)),
            "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)}, "_total_train_tokens": 0,
            "_tp_size": 1,
        }  # fmt: skip
        for name, value in {**fixed, **attributes}.items():
            object.__setattr__(trainer, name, value)
        zeros = torch.zeros_like(tokens)
        out = SimpleNamespace(
            log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=log_sum_sq
        )
        prompt = torch.zeros(len(mask), 1, dtype=mask.dtype)
        inputs = {
            "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
            "attention_mask": torch.cat([prompt + 1, mask], 1),
            "completion_mask": torch.cat([prompt, mask], 1),
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        return self.trainer._compute_loss(trainer, lambda **_: out, inputs, False)

    def sums(self, policy: Tensor, reference: Tensor, loss_type: str, **attributes: Any) -> Tensor:
        """Mean loss for summed log-probabilities (B, 2): one token per completion."""
        tokens = policy.t().reshape(-1, 1)
        return self.loss(
            tokens, torch.ones_like(tokens).long(), reference[:, 0], reference[:, 1], loss_type, **attributes
        )


def cpo(mean_logps: Tensor, **attributes: Any) -> Tensor:
    """TRL's CPO family (loss_type "simpo" is SimPO): (B,) for mean log-probabilities (B, 2)."""
    from trl.experimental.cpo import CPOTrainer

    stub = SimpleNamespace(alpha=0.0, label_smoothing=0.0, accelerator=SimpleNamespace(device="cpu"), **attributes)
    return CPOTrainer.cpo_loss(stub, mean_logps[:, 0], mean_logps[:, 1])[0]  # type: ignore[arg-type]


def odds_ratio(mean_logps: Tensor, beta: float) -> Tensor:
    """TRL's odds-ratio term of ORPO, as a loss (B,); it computes in float32."""
    from trl.experimental.orpo import ORPOTrainer

    stub = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    return -ORPOTrainer.odds_ratio_loss(stub, mean_logps[:, 0], mean_logps[:, 1])[0]  # type: ignore[arg-type]


def liger(policy: Tensor, reference: Tensor, loss_type: str, **options: Any) -> Tensor:
    """Liger's DPO family: sum over pairs of the loss for sums (B, 2)."""
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    target = torch.zeros(2 * len(policy))
    out = LigerFusedLinearDPOFunction.preference_loss_fn(
        policy[:, 0], policy[:, 1], target, reference[:, 0], reference[:, 1], loss_type=loss_type, **options
    )
    return out[0] * len(policy)


def liger_odds_ratio(mean_logps: Tensor, beta: float) -> Tensor:
    """Liger's odds-ratio term of ORPO, summed over pairs."""
    from liger_kernel.chunked_loss.orpo_loss import LigerFusedLinearORPOFunction

    out = LigerFusedLinearORPOFunction.preference_loss_fn(
        mean_logps[:, 0], mean_logps[:, 1], torch.zeros(2 * len(mean_logps)), beta=beta
    )
    return out[0] * len(mean_logps)


def liger_simpo(mean_logps: Tensor, beta: float, gamma: float) -> Tensor:
    """Liger's SimPO, summed over pairs."""
    from liger_kernel.chunked_loss.simpo_loss import LigerFusedLinearSimPOFunction

    out = LigerFusedLinearSimPOFunction.preference_loss_fn(
        mean_logps[:, 0], mean_logps[:, 1], torch.zeros(2 * len(mean_logps)), beta=beta, gamma=gamma
    )
    return out[0] * len(mean_logps)
