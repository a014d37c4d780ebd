"""Keys of contents: what a cache or a checkpoint was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from pl_prefopt.utilities.sharding import whole


def json_digest(value: object) -> str:
    """SHA-256 of the JSON text of plain values, the order of keys aside."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors, whatever their order and device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # the view as bytes copies nothing and works for dtypes that numpy lacks, bfloat16 among them
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 of the content of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_key(network: nn.Module) -> str:
    """A cheap key of the weights of a network, sharded or not: name, shape and float64 sum of every parameter.

    The sums are taken on the device where the weights lie, and only numbers leave it. `tensors_digest` would copy all
    weights to the CPU and hash them there, 1.2 s per GB on one core, so 17 s for 7B parameters in bf16, before every
    round of sampling. (On a CPU the sums are no faster than the hash, but models are small there.) Two different
    trainings do not end in equal sums of every parameter, so the key is sufficient to reject what another policy left
    on disk; it is no protection against an attacker.
    """
    weights = ((name, whole(p.detach())) for name, p in network.named_parameters())
    sums = [f"{name} {tuple(p.shape)} {float(p.sum(dtype=torch.float64)):.12g}" for name, p in weights]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
