"""Fully sharded data parallel (FSDP2): what `ModelParallelStrategy` asks a module to do itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shard(network: nn.Module, mesh: Any) -> None:
    """Shard `network` in place over the data-parallel dimension of `mesh`: each block, the backbone, the output layer.

    Backbone and output layer are roots of their own, because hidden states are read from the one and log-probabilities
    are taken from the weight of the other without calling the model as a whole.
    """
    from torch.distributed.fsdp import fully_shard

    data_mesh = mesh["data_parallel"]
    model: Any = getattr(network, "get_base_model", lambda: network)()
    backbone = getattr(model, "base_model", model)
    for stack in (m for m in backbone.modules() if isinstance(m, nn.ModuleList)):
        for block in stack:
            fully_shard(block, mesh=data_mesh)
    fully_shard(backbone, mesh=data_mesh)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and not hasattr(head.weight, "full_tensor"):
        fully_shard(head, mesh=data_mesh)


def whole(parameter: Any) -> Any:
    """The whole of a parameter that may be sharded; its gradient is averaged over ranks on the way back."""
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import Partial

    full: Tensor = parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
    return full


def settle(network: nn.Module) -> None:
    """Put parameters that a forward pass left gathered back into shards.

    Needed before they are read or written directly, and after a forward pass outside of training: the head's weight is
    read without calling the head, and a gathered copy would not follow the optimizer.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def fill(parameter: Any, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be sharded."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
