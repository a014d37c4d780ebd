"""What adapters are at a given moment: whether they change anything yet, and what trains beside them."""

from __future__ import annotations

from torch import nn

from pl_prefopt.adapters.switch import adapter_layers


def parameters_of_adapters(network: nn.Module) -> set[int]:
    """Ids of the parameters that switching adapters off takes out of the network, `modules_to_save` included."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ids: set[int] = set()
    for layer in adapter_layers(network):
        names = layer.adapter_layer_names if isinstance(layer, BaseTunerLayer) else ("modules_to_save",)
        for name in names:
            container = getattr(layer, name, None)
            if isinstance(container, (nn.Module, nn.ParameterDict)):
                ids |= {id(parameter) for parameter in container.parameters()}
    return ids


def trained_beside_adapters(network: nn.Module) -> list[str]:
    """Names of trainable parameters that stay in the network when its adapters are off, such as biases."""
    ids = parameters_of_adapters(network)
    return [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and id(parameter) not in ids
    ]


def adapters_change_nothing(network: nn.Module) -> bool:
    """Whether every low-rank adapter is zero, as it is at the start of the usual initialization.

    False for adapters that were trained before, and for initializations such as PiSSA or at random. A low-rank update
    is B A, so it is zero where B is.
    """
    second_factors = [
        parameter
        for name, parameter in network.named_parameters()
        if ".lora_B." in name or ".lora_embedding_B." in name
    ]
    return all(not bool(parameter.detach().any()) for parameter in second_factors)
