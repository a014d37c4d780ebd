"""Requirements of callbacks: what a message says, and how little a module must have."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks.support import protocols
from pl_prefopt.callbacks.support.protocols import (
    SIGNATURES,
    HasHiddenStates,
    HasLogratios,
    HasReference,
    HasTruths,
    members,
    require,
)

OF_MODULES = [
    protocols.HasPolicy,
    protocols.HasReference,
    protocols.HasLogratios,
    protocols.HasLosses,
    protocols.HasHiddenStates,
    protocols.HasSamples,
    protocols.HasMovingSamples,
    protocols.HasPreview,
]


class Foreign(pl.LightningModule):
    """Somebody's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(1, 1)

    def pair_logratios(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return batch


class Asks:
    """A callback."""


def test_a_module_with_all_members_is_returned() -> None:
    module = Foreign()
    assert require(module, Asks(), HasLogratios) is module


def test_a_missing_method_is_named_with_its_signature() -> None:
    message = (
        "Asks requires Foreign.pair_hidden_states(batch) -> (chosen (B, T, D), mask, rejected, mask), which is not "
        "defined"
    )
    with pytest.raises(TypeError) as error:
        require(Foreign(), Asks(), HasHiddenStates)
    assert str(error.value) == message


def test_all_missing_members_are_named_at_once() -> None:
    with pytest.raises(TypeError, match=r"Asks requires Linear\.policy, .* and Linear\.reference, .*, which are not"):
        require(torch.nn.Linear(1, 1), Asks(), HasReference)


def test_members_of_bases_count() -> None:
    names = ["write_samples", "write_pairs", "provide_train", "conditions", "truths"]
    assert members(HasTruths) == names


@pytest.mark.parametrize("protocol", OF_MODULES, ids=lambda p: p.__name__)
def test_a_module_needs_at_most_three_members(protocol: type) -> None:
    assert 1 <= len(members(protocol)) <= 3


def test_every_member_that_can_be_required_has_a_signature() -> None:
    required = [*OF_MODULES, protocols.HasTruths, protocols.HasImages, protocols.HasRows]
    assert {name for protocol in required for name in members(protocol)} == SIGNATURES.keys()


def test_no_protocol_is_left_unused() -> None:
    defined = {name for name, value in vars(protocols).items() if getattr(value, "_is_protocol", False)} - {"Protocol"}
    folder = Path(inspect.getfile(protocols)).parents[1]
    text = "\n".join(file.read_text() for file in folder.rglob("*.py"))
    assert {name for name in defined if text.count(name) < 2} == set()
