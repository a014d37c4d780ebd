"""Builders of policy networks."""

from pl_prefopt.policies.base import FromCallable, PolicyBuilder
from pl_prefopt.policies.causal_lm import CausalLM
from pl_prefopt.policies.diffusion import Diffusion
from pl_prefopt.policies.reward_head import RewardHead
from pl_prefopt.policies.seq2seq_lm import Seq2SeqLM

__all__ = ["CausalLM", "Diffusion", "FromCallable", "PolicyBuilder", "RewardHead", "Seq2SeqLM"]
