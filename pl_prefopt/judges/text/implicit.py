"""The reward that a preference-trained model holds without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pl_prefopt.adapters import adapters_disabled, has_adapters
from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import answer_tokens, condition_ids, plain_ids
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.policies.base import PolicyBuilder


class ImplicitReward(Judge):
    """r(x, y) = beta * (log pi(y | x) - log pi_ref(y | x)), sums over the tokens of y and its EOS (DPO, 2305.18290).

    Args:
        policy: builder of the trained model, e.g. CausalLM(pretrained=..., adapter=...).
        tokenizer: hub name or folder.
        reference: builder of what it was trained against; None: the policy with its adapters switched off.
        beta: > 0.
        mean: divide by the number of tokens.
        batch_size: rows per forward pass.
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: an argument out of range; at the first call, no reference and no adapters.
    """

    def __init__(
        self,
        policy: PolicyBuilder,
        tokenizer: str,
        reference: PolicyBuilder | None = None,
        beta: float = 0.1,
        mean: bool = False,
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        if not beta > 0 or batch_size < 1:
            raise ValueError(f"beta must be > 0 and batch_size >= 1, got {beta} and {batch_size}")
        self.policy, self.tokenizer, self.reference = policy, tokenizer, reference
        self.beta, self.mean, self.batch_size, self.device = beta, mean, batch_size, device
        self._loaded: tuple[nn.Module, nn.Module | None, Any] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        policy, reference, tokenizer = self._load()
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        prompts = [condition_ids(tokenizer, c) for c in conditions]
        answers = [[*plain_ids(tokenizer, s), *end] for s in samples]
        trained = answer_tokens(policy, prompts, answers, self.batch_size)
        with nullcontext() if reference is not None else adapters_disabled(policy):
            base = answer_tokens(reference or policy, prompts, answers, self.batch_size)
        ratios = [a.logps.double() - b.logps.double() for a, b in zip(trained, base, strict=True)]
        return self.beta * torch.stack([r.mean() if self.mean else r.sum() for r in ratios])

    def _load(self) -> tuple[nn.Module, nn.Module | None, Any]:
        if self._loaded is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            policy = self.policy().requires_grad_(False).to(device)
            if self.reference is None and not has_adapters(policy):
                raise ValueError(
                    "ImplicitReward needs a reference: give the builder of the model that the policy was trained "
                    "against, or a policy with adapters that can be switched off"
                )
            reference = None if self.reference is None else self.reference().requires_grad_(False).to(device)
            self._loaded = policy, reference, load_tokenizer(self.tokenizer)
        return self._loaded
