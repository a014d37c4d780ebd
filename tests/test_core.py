"""Small shared parts: plain configuration, exact means, keyed seeds."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.metrics import ExactMeans
from pl_prefopt.objectives import DPO, SFT, Mixture, Objective
from pl_prefopt.policies import CausalLM, FromCallable
from pl_prefopt.references import CachedReference, FrozenCopy, Reference
from pl_prefopt.utilities.configurable import Configurable, from_config, to_config
from pl_prefopt.utilities.seeding import derive_seed, keyed_generator
from tests.tiny import QWEN2


@pytest.mark.parametrize(
    "value",
    [
        Mixture([DPO(beta=0.2), SFT()], [1.0, 0.5]),
        CachedReference("cache", FrozenCopy()),
        CausalLM(config=QWEN2, lora={"r": 2}),
    ],
)
def test_a_nest_survives_the_round_trip_as_plain_values(value: Configurable) -> None:
    plain = to_config(value)
    assert all(type(v) in (str, int, float, bool, type(None)) for v in leaves(plain))
    again = from_config(plain, Configurable)
    assert again == value
    assert type(again) is type(value)


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in leaves(v)]
    if isinstance(value, list):
        return [leaf for v in value for leaf in leaves(v)]
    return [value]


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'FrozenCopy' is not a known Objective; known are .*DPO"):
        from_config({"class_path": "FrozenCopy"}, Objective)
    with pytest.raises(ValueError, match="expected a Reference, got 3"):
        from_config(3, Reference)


def test_equality_is_by_settings() -> None:
    assert DPO(beta=0.2) == DPO(beta=0.2)
    assert DPO(beta=0.2) != DPO(beta=0.1)
    assert "beta=0.2" in repr(DPO(beta=0.2))


def test_a_network_of_your_own() -> None:
    network = torch.nn.Linear(2, 2)
    assert FromCallable(lambda: network)() is network


def test_means_are_sums_over_counts_not_means_of_means() -> None:
    metric = ExactMeans(["a", "b"])
    metric.update({"a": torch.tensor([1.0, 2.0, 3.0])})
    metric.update({"a": torch.tensor([10.0]), "b": torch.tensor([5.0])})
    assert metric.compute() == {"a": torch.tensor(4.0), "b": torch.tensor(5.0)}
    with pytest.raises(ValueError, match=r"unknown quantities \['c'\]"):
        metric.update({"c": torch.zeros(1)})
    metric.reset()
    assert metric.compute() == {}


def test_keyed_seeds_depend_on_every_key_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = torch.randn(3, generator=keyed_generator(0, "noise", 5))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, torch.randn(3, generator=keyed_generator(0, "noise", 5)))
    assert (
        len(
            {derive_seed(0, "noise", 5), derive_seed(1, "noise", 5), derive_seed(0, "x", 5), derive_seed(0, "noise", 6)}
        )
        == 4
    )
