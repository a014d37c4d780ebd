"""Adapters of peft: switching them inside a network, copying and combining them."""

from pl_prefopt.adapters.combine import combine_adapters
from pl_prefopt.adapters.inspection import (
    adapters_change_nothing,
    parameters_of_adapters,
    trained_beside_adapters,
)
from pl_prefopt.adapters.options import check_lora
from pl_prefopt.adapters.switch import (
    REFERENCE,
    adapter_active,
    adapter_layers,
    adapter_names,
    adapter_parameters,
    adapters_disabled,
    add_adapter_copy,
    has_adapters,
)

__all__ = [
    "REFERENCE",
    "adapter_active",
    "adapter_layers",
    "adapter_names",
    "adapter_parameters",
    "adapters_change_nothing",
    "adapters_disabled",
    "add_adapter_copy",
    "check_lora",
    "combine_adapters",
    "has_adapters",
    "parameters_of_adapters",
    "trained_beside_adapters",
]
