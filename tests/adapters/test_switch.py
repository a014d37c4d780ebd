"""Adapters are switched and restored exactly."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.adapters import (
    adapter_active,
    adapter_names,
    adapter_parameters,
    adapters_disabled,
    add_adapter_copy,
    has_adapters,
)
from tests.tiny import nudge, tiny_lm

IDS = torch.tensor([[3, 4, 5, 6]])


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits


def trainable(network: torch.nn.Module) -> set[str]:
    return {n for n, p in network.named_parameters() if p.requires_grad}


def test_disabled_adapters_give_the_base_model_and_come_back() -> None:
    base, network = tiny_lm()().eval(), tiny_lm(lora=True)().eval()
    nudge(network)
    before, own = trainable(network), logits(network)
    with adapters_disabled(network):
        assert torch.equal(logits(network), logits(base))
    assert trainable(network) == before
    assert torch.equal(logits(network), own)
    assert not torch.equal(own, logits(base))


def test_state_is_restored_after_an_error() -> None:
    network = tiny_lm(lora=True)()
    before = trainable(network)
    with pytest.raises(RuntimeError, match="boom"), adapters_disabled(network):
        raise RuntimeError("boom")
    assert trainable(network) == before


def test_copied_adapter_is_equal_frozen_and_independent() -> None:
    network = tiny_lm(lora=True)().eval()
    nudge(network)
    own = logits(network)
    add_adapter_copy(network, "default", "reference")
    assert adapter_names(network) == {"default", "reference"}
    assert not any(p.requires_grad for p in adapter_parameters(network, "reference").values())
    with adapter_active(network, "reference"):
        assert torch.equal(logits(network), own)
    nudge(network, seed=8)
    with adapter_active(network, "reference"):
        assert torch.equal(logits(network), own)
    assert not torch.equal(logits(network), own)


def test_unknown_adapter_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"no adapter named 'slow'.*default"),
        adapter_active(tiny_lm(lora=True)(), "slow"),
    ):
        pass


def test_a_network_without_peft_has_no_adapters() -> None:
    assert not has_adapters(tiny_lm()())
