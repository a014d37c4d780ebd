"""COFS-DPO: adapters of two domains mixed on a memory, in files of peft and of diffusers, and in a running network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from pl_prefopt.adapters import adapter_parameters, combine_adapters
from pl_prefopt.adapters.cofs import adapter_values, memory_loss, mix_in_place, mix_on_memory
from pl_prefopt.losses import dpo_loss
from pl_prefopt.policies import Diffusion
from tests.callbacks.everywhere import Denoiser, Images
from tests.pictures import module as image_module
from tests.tiny import nudge, tiny_lm


def peft_adapter(folder: Path) -> dict[str, torch.Tensor]:
    base: Any = tiny_lm()()
    return adapter_values(PeftModel.from_pretrained(base, folder))


def test_mixing_on_a_memory_takes_the_best_of_the_grid(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        network: Any = tiny_lm(lora=True)()
        nudge(network, seed=seed)
        network.save_pretrained(tmp_path / name)
    first, second = (peft_adapter(tmp_path / n) for n in "ab")
    target = {k: 0.3 * v + 0.7 * second[k] for k, v in first.items()}

    def loss(folder: Path) -> float:
        return sum(float((v - target[k]).square().sum()) for k, v in peft_adapter(folder).items())

    best, losses = mix_on_memory(tmp_path / "a", tmp_path / "b", tmp_path / "mix", loss)
    assert best == pytest.approx(0.3)
    assert len(losses) == 11
    assert loss(tmp_path / "mix") < 1e-9
    with pytest.raises(ValueError, match="steps"):
        mix_on_memory(tmp_path / "a", tmp_path / "b", tmp_path / "mix", loss, steps=1)
    with pytest.raises(ValueError, match="finite"):
        mix_on_memory(tmp_path / "a", tmp_path / "b", tmp_path / "mix", lambda _: float("nan"))


def diffusion(folder: Path, seed: int, alpha: int = 7) -> Path:
    made = image_module(Diffusion(tiny="sd", lora={"r": 2, "lora_alpha": alpha}))
    nudge(made.policy, seed=seed)
    folder.mkdir()
    made.export(folder)
    return folder


def test_adapters_of_diffusers_are_combined_with_their_alpha(tmp_path: Path) -> None:
    a, b = diffusion(tmp_path / "a", 1), diffusion(tmp_path / "b", 2)
    out = combine_adapters([a, b], [0.25, 0.75], tmp_path / "mix")
    networks = [Diffusion(tiny="sd", adapter=str(p))() for p in (a, b, out)]
    first, second, mixed = (adapter_values(n) for n in networks)
    for key, value in mixed.items():
        torch.testing.assert_close(value, 0.25 * first[key] + 0.75 * second[key], rtol=0, atol=1e-6)
    read: list[Any] = networks
    assert [n.peft_config["default"].lora_alpha for n in read] == [7, 7, 7]
    with pytest.raises(ValueError, match=r"differ in lora_alpha: \[\[7\], \[3\]\]"):
        combine_adapters([a, diffusion(tmp_path / "c", 3, alpha=3)], [0.5, 0.5], tmp_path / "no")


def domains() -> tuple[Denoiser, dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A denoiser, a memory of bright images, and adapters moved both ways along the memory's gradient."""
    module = Denoiser(lora=True)
    data = Images().datasets["val"]
    memory = torch.utils.data.default_collate(data)
    start = adapter_values(module.policy)
    own = adapter_parameters(module.policy, "default")
    loss = dpo_loss(*module.pair_logratios(memory), beta=1.0).mean()
    slopes = torch.autograd.grad(loss, list(own.values()))
    slope = dict(zip(start, slopes, strict=True))
    first, second = ({k: v - rate * slope[k] for k, v in start.items()} for rate in (0.4, -0.4))
    return module, memory, first, second


def test_a_running_network_ends_with_the_best_mixture() -> None:
    module, memory, first, second = domains()
    loss = memory_loss(module, [memory], beta=1.0)
    best, losses = mix_in_place(module.policy, first, second, loss, steps=5)
    assert list(losses) == [0, 0.25, 0.5, 0.75, 1]
    assert losses[best] == min(losses.values()) < losses[0.0]
    for key, value in adapter_values(module.policy).items():
        torch.testing.assert_close(value, best * first[key] + (1 - best) * second[key])
    assert loss() == losses[best]
    with torch.no_grad():
        assert loss() == pytest.approx(float(dpo_loss(*module.pair_logratios(memory), beta=1.0).mean()), abs=1e-6)


def test_what_does_not_fit_is_told() -> None:
    module, memory, first, _ = domains()
    odd = {f"x.{k}": v for k, v in first.items()}
    with pytest.raises(ValueError, match="second must have the tensors of adapter 'default'"):
        mix_in_place(module.policy, first, odd, memory_loss(module, [memory]))
    with pytest.raises(ValueError, match="no adapter named 'slow', got"):
        adapter_values(module.policy, "slow")
    with pytest.raises(ValueError, match="at least one batch of the memory"):
        memory_loss(module, [])
