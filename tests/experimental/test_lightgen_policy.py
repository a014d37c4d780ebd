"""The builder of masked autoregressive policies: sizes, adapters, files, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt.adapters import adapters_disabled, has_adapters
from pl_prefopt.experimental.lightgen import MaskedAutoregressivePolicy
from pl_prefopt.experimental.lightgen.policy import SIZES
from pl_prefopt.policies import Diffusion, PolicyBuilder
from pl_prefopt.utilities.configurable import from_config, to_config

CONFIG = {"channels": 3, "sample_size": [8, 8], "patch": 4, "text_dim": 32, "width": 16, "heads": 2, "head_width": 16}
CONFIG |= {"encoder_depth": 1, "decoder_depth": 1, "text_depth": 0, "head_depth": 1}
PIXEL = Diffusion(tiny="pixel")


def builder(**options: Any) -> MaskedAutoregressivePolicy:
    return MaskedAutoregressivePolicy(PIXEL, **{"config": CONFIG, "repeats": 2, **options})


def residual(policy: MaskedAutoregressivePolicy, network: torch.nn.Module) -> Tensor:
    family, g = policy.family(), torch.Generator().manual_seed(0)
    drawn = [family.draw(g, (3, 8, 8), lambda n: torch.rand(n, generator=g).double()) for _ in range(2)]
    draws = {k: torch.stack([d[k] for d in drawn]) for k in drawn[0]}
    cond = policy.conditioner().encode_text(["a red circle", "a blue square"])
    return family.residual(network, torch.randn(2, 3, 8, 8, generator=g), draws, cond)


def moved(network: torch.nn.Module) -> torch.nn.Module:
    """Away from the start, where output and adapters are zero."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def test_a_seed_gives_one_network_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    a, b, c = (dict(builder(seed=s)().named_parameters()) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_it_is_remembered_by_its_plain_values() -> None:
    policy = builder(lora={"r": 2}, text_drop=0.2)
    assert from_config(to_config(policy), PolicyBuilder) == policy


def test_adapters_are_what_trains_and_can_be_switched_off() -> None:
    policy = builder(lora={"r": 2})
    network = policy()
    assert has_adapters(network)
    assert all(("lora_" in k) == p.requires_grad for k, p in network.named_parameters())
    moved(network)
    on = residual(policy, network)
    with adapters_disabled(network):
        assert (residual(policy, network) - on).abs().max() > 1e-3
    assert torch.equal(residual(policy, network), on)


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 8}])
def test_an_export_is_read_back_to_the_same_function(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    policy = builder(lora=lora)
    network = moved(policy())
    policy.export(network, tmp_path)
    again = MaskedAutoregressivePolicy(PIXEL, pretrained=str(tmp_path), repeats=2)
    assert again.family().patch == 4
    torch.testing.assert_close(residual(again, again()), residual(policy, network), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "adapter" / "pytorch_lora_weights.safetensors").is_file() == (lora is not None)


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_are_those_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        network = MaskedAutoregressivePolicy(Diffusion(tiny="sd3"), config=name)._network()
    widths = {"base": 768, "large": 1024, "huge": 1280}
    assert network.norm_out.normalized_shape == (widths[name],)
    assert network.config["channels"] * network.config["patch"] ** 2 == 64
    assert network.config["text_dim"] == 4096


def test_half_precision_is_kept() -> None:
    assert {p.dtype for p in builder(dtype="bfloat16")().parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"config": None}, "exactly one of pretrained .* and config"),
        ({"pretrained": "x"}, "exactly one of pretrained .* and config"),
        ({"config": "giant"}, "base, large, huge or a dict of sizes, got 'giant'"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"repeats": 0}, "repeats and iterations must be >= 1"),
        ({"text_drop": 1.5}, r"text_drop in \[0, 1\], got 2, 64, 1.5"),
        ({"lora": {"rank": 4}}, "lora option 'rank'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        builder(**options)
