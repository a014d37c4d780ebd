"""Builders of policy networks."""

from pl_prefopt.policies.base import FromCallable, PolicyBuilder
from pl_prefopt.policies.causal_lm import CausalLM
from pl_prefopt.policies.diffusion import Diffusion

__all__ = ["CausalLM", "Diffusion", "FromCallable", "PolicyBuilder"]
