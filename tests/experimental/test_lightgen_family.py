"""The masked autoregressive family: draws of a row, its error, and sampling by unmasking."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pl_prefopt.experimental.lightgen import MaskedAutoregressive
from pl_prefopt.experimental.lightgen.family import MaskedTokens
from pl_prefopt.experimental.lightgen.unmasking import revealed, unmask

SIZES = {"channels": 3, "sample_size": (8, 8), "patch": 2, "text_dim": 6, "width": 16, "heads": 2}
DEPTHS = {"encoder_depth": 1, "decoder_depth": 1, "text_depth": 0, "head_width": 16, "head_depth": 1}
SHAPE, TOKENS, DIM, ROWS = (3, 8, 8), 16, 12, 3
FAMILY = MaskedTokens(patch=2, repeats=2, text_drop=0.5, clip=1.0)


def network() -> MaskedAutoregressive:
    torch.manual_seed(0)
    out = MaskedAutoregressive(**SIZES, **DEPTHS)  # type: ignore[arg-type]
    for name, parameter in out.named_parameters():
        if "modulation" in name or "leave" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return out.requires_grad_(False)


def draw(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return FAMILY.draw(g, SHAPE, lambda n: torch.rand(n, generator=g).double())


def stacked(rows: int = ROWS) -> dict[str, Tensor]:
    drawn = [draw(i) for i in range(rows)]
    return {k: torch.stack([d[k] for d in drawn]) for k in drawn[0]}


def inputs() -> tuple[Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(ROWS, *SHAPE, generator=g), {"prompt_embeds": torch.randn(ROWS, 4, 6, generator=g)}


def test_draws_have_the_shapes_and_the_distribution_that_they_say() -> None:
    drawn = stacked(400)
    assert {k: tuple(v.shape[1:]) for k, v in drawn.items()} == {
        "masked": (TOKENS,),
        "times": (2, TOKENS),
        "t": (),
        "noise": (2, TOKENS, DIM),
        "text_drop": (),
    }
    counts = drawn["masked"].sum(1)
    assert counts.min() >= math.ceil(0.7 * TOKENS)
    assert counts.max() == TOKENS
    # E[ratio] of N(1, .25) cut to [.7, 1] is 1 - .25 (phi(0) - phi(1.2)) / (Phi(0) - Phi(-1.2)); ceil adds about 1/2
    mean = 1 - 0.25 * (0.398942 - 0.194186) / (0.5 - 0.115070)
    assert counts.float().mean() / TOKENS == pytest.approx(mean + 0.5 / TOKENS, abs=0.01)
    assert drawn["masked"].float().mean(0).std() < 0.04, "every position is masked equally often"
    assert drawn["times"].float().mean() == pytest.approx(500, abs=10)
    assert drawn["text_drop"].float().mean() == pytest.approx(0.5, abs=0.08)


def test_one_seed_gives_one_draw() -> None:
    for key, value in draw(3).items():
        assert torch.equal(value, draw(3)[key])
    assert not torch.equal(draw(3)["noise"], draw(4)["noise"])


def test_the_mean_square_of_the_residual_is_the_loss_over_masked_tokens() -> None:
    net, (x0, cond), draws = network(), inputs(), stacked()
    clean = net.patchify(x0).unsqueeze(1)
    # squared cosine schedule (Nichol and Dhariwal 2021), in float64: beta_t = min(1 - f(t + 1)/f(t), .999)
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    keep = torch.tensor([max(f[i + 1] / f[i], 0.001) for i in range(1000)], dtype=torch.float64).cumprod(0)
    signal = keep[draws["times"]].unsqueeze(-1)
    noisy = (signal.sqrt() * clean + (1 - signal).sqrt() * draws["noise"]).float()
    predicted = net(x0, draws["masked"], noisy, draws["times"], cond["prompt_embeds"], draws["text_drop"])
    loss = (predicted - draws["noise"]).square().mean(-1)
    mask = draws["masked"].unsqueeze(1).expand_as(loss).float()
    expected = (loss * mask).sum((1, 2)) / mask.sum((1, 2))
    got = FAMILY.residual(net, x0, draws, cond)
    assert got.shape == (ROWS, 2, TOKENS, DIM)
    assert (got[~draws["masked"].unsqueeze(1).expand(-1, 2, -1)] == 0).all()
    torch.testing.assert_close(got.square().flatten(1).mean(1), expected, rtol=1e-4, atol=1e-5)


def test_a_row_alone_has_the_residual_that_it_has_in_a_batch() -> None:
    net, (x0, cond), draws = network(), inputs(), stacked()
    together = FAMILY.residual(net, x0, draws, cond)
    for i in range(ROWS):
        row = slice(i, i + 1)
        alone = FAMILY.residual(
            net, x0[row], {k: v[row] for k, v in draws.items()}, {k: v[row] for k, v in cond.items()}
        )
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "iterations"), [(16, 4), (16, 16), (5, 64), (256, 64), (7, 1)])
def test_every_iteration_reveals_more_until_all_are_known(tokens: int, iterations: int) -> None:
    known = revealed(tokens, iterations)
    assert len(known) == min(tokens, iterations)
    assert known[-1] == tokens
    steps = [b - a for a, b in zip([0, *known], known, strict=False)]
    assert min(steps) >= 1


def test_few_tokens_come_first_and_many_last() -> None:
    assert revealed(16, 4) == [16 - math.floor(16 * math.cos(math.pi / 8 * k)) for k in (1, 2, 3)] + [16]


def sampled(rows: list[int], guidance: float = 2.0, text: float = 0.0) -> Tensor:
    cond = {"prompt_embeds": inputs()[1]["prompt_embeds"][rows] + text}
    generators = [torch.Generator().manual_seed(i) for i in rows]
    return unmask(
        network(), FAMILY.process.scheduler, cond, SHAPE, generators, iterations=3, steps=4, guidance=guidance
    )


def test_samples_have_the_shape_of_latents_and_depend_on_their_own_generator_and_caption() -> None:
    out = sampled([0, 1, 2])
    assert out.shape == (3, *SHAPE)
    assert out.abs().max() <= 1, "clipped"
    torch.testing.assert_close(sampled([0, 1, 2]), out, rtol=0, atol=0)
    torch.testing.assert_close(sampled([1]), out[1:2], rtol=1e-4, atol=1e-5)
    assert (sampled([0, 1, 2], text=3.0) - out).abs().max() > 1e-3


def test_guidance_is_between_the_empty_caption_and_the_caption() -> None:
    at = [sampled([0, 1, 2], guidance=g) for g in (0.0, 1.0, 1.0 + 1e-7)]
    torch.testing.assert_close(at[2], at[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(at[0], sampled([0, 1, 2], guidance=0.0, text=3.0)), "at 0 the caption is not looked at"
    assert (at[0] - at[1]).abs().max() > 1e-3


class _Oracle(MaskedAutoregressive):
    """Knows the picture: its head is asked with the clean tokens in place of the condition."""

    target: Tensor

    def condition(self, latents: Tensor, masked: Tensor, text: Tensor, text_drop: Tensor) -> Tensor:
        known = self.patchify(latents)[~masked]
        torch.testing.assert_close(known, self.patchify(self.target)[~masked], rtol=1e-3, atol=1e-3)
        return self.patchify(self.target)


def test_a_perfect_head_gives_back_the_picture_token_by_token() -> None:
    torch.manual_seed(0)
    net = _Oracle(**SIZES, **DEPTHS).requires_grad_(False)  # type: ignore[arg-type]
    net.target = torch.rand(2, *SHAPE) * 2 - 1
    alphas = FAMILY.process.scheduler.alphas_cumprod

    def exact(noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        signal = alphas[timestep].unsqueeze(-1)
        return (noisy - signal.sqrt() * condition) / (1 - signal).sqrt()

    net.head.forward = exact  # type: ignore[method-assign]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    cond = {"prompt_embeds": torch.zeros(2, 4, 6)}
    out = unmask(net, FAMILY.process.scheduler, cond, SHAPE, generators, iterations=4, steps=20, guidance=1.0)
    torch.testing.assert_close(out, net.target, rtol=1e-3, atol=1e-3)
