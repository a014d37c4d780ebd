"""A scalar reward on top of a language model's body: what a Bradley-Terry reward model is."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from pl_prefopt.logprobs.family import base_model
from pl_prefopt.policies.causal_lm import CausalLM


class RewardHead(CausalLM):
    """A transformers model for sequence classification with one output, on the weights of a causal language model.

    Takes the arguments of `CausalLM`; the body is loaded, the head is new and seeded. What it saves is read by
    `AutoModelForSequenceClassification` and by the judge `RewardModel`.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    new_layers: ClassVar[tuple[str, ...]] = ("score",)
    task: ClassVar[str] = "SEQ_CLS"
    settings: ClassVar[dict[str, Any]] = {"num_labels": 1}


def reward_of(network: nn.Module, hidden: Tensor) -> Tensor:
    """(...) rewards of hidden states (..., H).

    Raises:
        ValueError: a network without such a head.
    """
    head = getattr(base_model(network), "score", None)
    if head is None:
        raise ValueError(
            f"{type(base_model(network)).__name__} has no layer `score`: use policy: RewardHead with a causal language "
            "model such as Qwen2, Llama, Gemma, Mistral or GPT-2"
        )
    return head(hidden)[..., 0].float()
