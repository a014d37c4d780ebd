"""The masked autoregressive model in the image module: the same core as diffusion, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pl_prefopt.experimental.lightgen import MaskedAutoregressivePolicy
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DDO, DPO
from pl_prefopt.policies import Diffusion
from tests.pictures import pixel_batch

CONFIG = {"channels": 3, "sample_size": [16, 16], "patch": 8, "text_dim": 32, "width": 16, "heads": 2}
CONFIG |= {"encoder_depth": 1, "decoder_depth": 1, "text_depth": 0, "head_depth": 1, "head_width": 16}


def module(lora: bool = False, moved: bool = False, text_drop: float = 0.5, **options: Any) -> ImagePreferenceModule:
    policy = MaskedAutoregressivePolicy(
        Diffusion(tiny="pixel"),
        config=CONFIG,
        lora={"r": 2} if lora else None,
        repeats=2,
        text_drop=text_drop,
        clip=1.0,
        iterations=2,
    )
    made = ImagePreferenceModule(policy, **options)
    made.configure_model()
    torch.manual_seed(0)
    for name, parameter in made.policy.named_parameters():
        trained = lora and name.startswith("head")  # adapters learn nothing beside a head that still gives zero
        if trained or (moved and parameter.requires_grad and "modulation" not in name):
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.train()
    return made


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_the_start_log_ratios_are_zero_and_the_loss_is_that_of_a_coin(lora: bool, checkpointing: bool) -> None:
    for objective, loss in ((DPO(beta=5000.0), math.log(2)), (DDO(3.0, 30.0), 4 * math.log(2))):
        net = module(lora, objective=objective)
        if checkpointing:
            net.policy.enable_gradient_checkpointing()  # type: ignore[operator]
        scores = net.score(pixel_batch(3))
        assert (scores.logratios == 0).all()
        torch.testing.assert_close(net.objective(scores), torch.full((3,), loss))
        net.objective(scores).sum().backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.policy.parameters())


def test_a_batch_is_its_rows() -> None:
    net = module(moved=True)
    together = net.score(pixel_batch(3)).logratios
    assert together.abs().min() > 0
    for i in range(3):
        torch.testing.assert_close(net.score(pixel_batch(1, start=i)).logratios[0], together[i], rtol=1e-4, atol=1e-6)


def test_equal_samples_of_a_pair_have_equal_errors_so_all_draws_are_shared() -> None:
    net, batch = module(moved=True), pixel_batch(3)
    batch["pixels"] = batch["pixels"][:, :1].expand(-1, 2, -1, -1, -1)
    errors = net.score(batch).errors
    assert errors is not None
    torch.testing.assert_close(errors[:, 0], errors[:, 1], rtol=0, atol=1e-6)


def test_a_sum_is_the_mean_times_the_numbers_of_a_sample() -> None:
    batch = pixel_batch(3)
    mean, total = (module(moved=True, reduction=r).score(batch).errors for r in ("mean", "sum"))
    assert mean is not None
    assert total is not None
    torch.testing.assert_close(total, mean * 3 * 16 * 16)


def test_rows_that_drew_the_empty_caption_are_known_to_the_objective() -> None:
    net = module(objective=DDO(1.0, 1.0, alpha_empty=0.0), moved=True)
    scores = net.score(pixel_batch(12))
    dropped = scores.outputs["text_drop"]
    assert 0 < dropped.sum() < 12
    loss = net.objective(scores)
    torch.testing.assert_close(loss[dropped], torch.nn.functional.softplus(-scores.chosen[dropped]))
    never = pixel_batch(2) | {"caption": ["a red circle", ""]}
    assert module(text_drop=0.0).score(never).outputs["text_drop"].tolist() == [False, True]


def test_features_are_what_the_last_layer_of_the_head_sees() -> None:
    net = module()
    chosen, mask, rejected, _ = net.pair_hidden_states(pixel_batch(2))
    assert chosen.shape == rejected.shape == (2, 2 * 4, CONFIG["head_width"])
    assert mask.shape == (2, 8)


def test_pictures_are_sampled_and_repeat_with_the_seed() -> None:
    net = module(moved=True)
    captions = ["a red circle", "a blue square"]
    made = net.sample(captions, 2, seed=1, steps=3, guidance=2.0)
    assert made.shape == (2, 2, 3, 16, 16)
    assert 0 <= made.min() <= made.max() <= 1
    torch.testing.assert_close(net.sample(captions[1:], 2, seed=1, steps=3, guidance=2.0), made[1:])
    assert (made[0, 0] - made[0, 1]).abs().max() > 0.01


def test_sizes_that_no_token_covers_are_refused() -> None:
    net, batch = module(), pixel_batch(2)
    batch["pixels"] = batch["pixels"][..., :12]
    with pytest.raises(ValueError, match="multiples of 8"):
        net.score(batch)
