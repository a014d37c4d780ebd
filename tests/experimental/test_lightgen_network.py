"""The masked autoregressive network: what it may see, its shapes, its files, its gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pl_prefopt.experimental.lightgen import DiffusionHead, MaskedAutoregressive
from pl_prefopt.experimental.lightgen.head import sinusoids

SIZES = {"channels": 3, "sample_size": (8, 12), "patch": 4, "text_dim": 6, "width": 16, "heads": 2, "head_width": 24}
DEPTHS = {"encoder_depth": 1, "decoder_depth": 2, "text_depth": 1, "head_depth": 2, "registers": 2}
ROWS, TOKENS, DIM = 3, 6, 48


def network() -> MaskedAutoregressive:
    torch.manual_seed(0)
    out = MaskedAutoregressive(**SIZES, **DEPTHS)  # type: ignore[arg-type]
    for name, parameter in out.named_parameters():  # zero at the start would hide every dependence
        if "modulation" in name or "leave" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return out


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    masked = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1]]).bool()
    return {
        "latents": torch.randn(ROWS, 3, 8, 12),
        "masked": masked,
        "noisy": torch.randn(ROWS, 2, TOKENS, DIM),
        "timestep": torch.randint(0, 1000, (ROWS, 2, TOKENS)),
        "text": torch.randn(ROWS, 4, 6),
        "text_drop": torch.tensor([False, True, False]),
    }


def test_what_masked_tokens_hold_changes_nothing() -> None:
    net, given = network(), inputs()
    tokens = net.patchify(given["latents"])
    other = torch.where(given["masked"].unsqueeze(-1), 100 * torch.randn_like(tokens), tokens)
    changed = net(**{**given, "latents": net.unpatchify(other, (8, 12))})
    torch.testing.assert_close(changed, net(**given), rtol=0, atol=0)


def test_what_visible_tokens_hold_changes_every_token_of_their_row_only() -> None:
    net, given = network(), inputs()
    latents = given["latents"].clone()
    latents[1] += 1.0
    change = (net(**{**given, "latents": latents}) - net(**given)).abs().amax((1, 3))
    assert (change[1] > 1e-4).all()
    assert (change[[0, 2]] == 0).all()


def test_captions_are_seen_unless_dropped() -> None:
    net, given = network(), inputs()
    change = (net(**{**given, "text": given["text"] + 1}) - net(**given)).abs().amax((1, 2, 3))
    assert (change > 1e-4).tolist() == [True, False, True]
    assert change[1] == 0


def test_a_row_alone_gives_what_it_gives_in_a_batch() -> None:
    net, given = network(), inputs()
    together = net(**given)
    for i in range(ROWS):
        alone = net(**{k: v[i : i + 1] for k, v in given.items()})
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns_and_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        net = network()
        net.enable_gradient_checkpointing() if checkpointing else None
        net(**inputs()).square().mean().backward()
        grads.append({k: p.grad for k, p in net.named_parameters()})
    assert all(g is not None and g.abs().max() > 0 for k, g in grads[0].items() if "to_k.bias" not in k)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_patches_are_cut_row_by_row_and_put_back() -> None:
    net, latents = network(), torch.randn(2, 3, 8, 12)
    tokens = net.patchify(latents)
    assert tokens.shape == (2, TOKENS, DIM)
    torch.testing.assert_close(tokens[:, 4].reshape(2, 3, 4, 4), latents[:, :, 4:8, 4:8])
    torch.testing.assert_close(net.unpatchify(tokens, (8, 12)), latents)


def test_positions_are_interpolated_for_another_size() -> None:
    net, given = network(), inputs()
    large = {
        **given,
        "latents": torch.randn(ROWS, 3, 16, 24),
        "masked": torch.rand(ROWS, 24) < 0.5,
        "noisy": torch.randn(ROWS, 1, 24, DIM),
        "timestep": torch.randint(0, 1000, (ROWS, 1, 24)),
    }
    out = net(**large)
    assert out.shape == (ROWS, 1, 24, DIM)
    assert torch.isfinite(out).all()


def test_files_give_the_same_network(tmp_path: Path) -> None:
    net = network()
    net.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    torch.testing.assert_close(MaskedAutoregressive.from_pretrained(tmp_path)(**inputs()), net(**inputs()))


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"patch": 3}, "multiples of patch 3"), ({"heads": 3}, "multiple of heads 3, got 16; try 15")],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MaskedAutoregressive(**{**SIZES, **DEPTHS, **sizes})  # type: ignore[arg-type]


def test_the_head_starts_at_zero_and_treats_tokens_apart() -> None:
    head = DiffusionHead(4, 8, 16, 2)
    noisy, time, condition = torch.randn(2, 3, 4), torch.randint(0, 1000, (2, 3)), torch.randn(2, 3, 8)
    assert (head(noisy, time, condition) == 0).all()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    out = head(noisy, time, condition)
    for changed in (
        head(noisy, time + torch.tensor([[300, 0, 0], [0, 0, 0]]), condition),
        head(noisy, time, condition + torch.tensor([1.0, 0, 0]).view(1, 3, 1) * torch.tensor([1.0, 0]).view(2, 1, 1)),
    ):
        moved = (changed - out).abs().amax(-1)
        assert moved[0, 0] > 1e-3
        assert (moved.flatten()[1:] < 1e-6).all()


def test_sinusoids_follow_their_formula() -> None:
    out = sinusoids(torch.tensor([7.0]), 4)
    expected = torch.tensor([[7.0, 7 * 1e-2, 7.0, 7 * 1e-2]])
    torch.testing.assert_close(out, torch.cat([expected[:, :2].cos(), expected[:, 2:].sin()], -1))
