"""The implicit reward of a preference-trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pl_prefopt.adapters import adapters_disabled, has_adapters
from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import answer_tokens, condition_ids, plain_ids
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.checks import integer, positive
from pl_prefopt.utilities.devices import default_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Networks(NamedTuple):
    """What `ImplicitReward` loads at its first call."""

    policy: nn.Module
    reference: nn.Module | None
    tokenizer: PreTrainedTokenizerBase


@dataclass
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

    policy: PolicyBuilder
    tokenizer: str
    reference: PolicyBuilder | None = None
    beta: float = 0.1
    mean: bool = False
    batch_size: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        integer("batch_size", self.batch_size)

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        policy, reference, tokenizer = self.networks
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        prompts = [condition_ids(tokenizer, c) for c in conditions]
        answers = [[*plain_ids(tokenizer, s), *end] for s in samples]
        trained = answer_tokens(policy, prompts, answers, self.batch_size)
        with nullcontext() if reference is not None else adapters_disabled(policy):
            base = answer_tokens(reference or policy, prompts, answers, self.batch_size)
        ratios = [a.logps.double() - b.logps.double() for a, b in zip(trained, base, strict=True)]
        return self.beta * torch.stack([r.mean() if self.mean else r.sum() for r in ratios])

    @cached_property
    def networks(self) -> Networks:
        """Policy, reference and tokenizer, built at the first call."""
        device = default_device(self.device)
        policy = self.policy().requires_grad_(False).to(device)
        if self.reference is None and not has_adapters(policy):
            raise ValueError(
                "ImplicitReward needs a reference: give the builder of the model that the policy was trained "
                "against, or a policy with adapters that can be switched off"
            )
        reference = None if self.reference is None else self.reference().requires_grad_(False).to(device)
        return Networks(policy, reference, load_tokenizer(self.tokenizer))
