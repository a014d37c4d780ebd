"""Builders of policy networks."""

from pl_prefopt.policies.base import FromCallable, PolicyBuilder
from pl_prefopt.policies.causal_lm import CausalLM

__all__ = ["CausalLM", "FromCallable", "PolicyBuilder"]
