"""Noise processes, samplers and weightings against formulas written out here."""

from __future__ import annotations

import functools

import pytest
import torch

from pl_prefopt.diffusion.processes import Flow, Process, VariancePreserving
from pl_prefopt.diffusion.timesteps import (
    EpsilonSpace,
    LogitNormal,
    MinSNR,
    RoundRobin,
    TimestepSampler,
    Turbo,
    Uniform,
)
from pl_prefopt.utilities.seeding import keyed_generator

STEPS = 1000


def diffusion(prediction: str | None = None) -> VariancePreserving:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return VariancePreserving(scheduler, prediction)


def shifted() -> Flow:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return Flow(FlowMatchEulerDiscreteScheduler(shift=3.0))


def rows(n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    x0, noise = (torch.randn(n, 4, 3, 5, generator=g) for _ in range(2))
    return x0, noise, torch.rand(n, generator=g)


def alpha_bar(t: int) -> float:
    """Cumulative product of 1 - beta, in Python floats."""
    out = 1.0
    for i in range(t + 1):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / (STEPS - 1)
        out *= 1 - root * root
    return out


def mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().flatten(1).mean(1)


@pytest.mark.parametrize("t", [0, 13, 500, 999])
def test_noised_and_velocity_from_first_principles(t: int) -> None:
    process, (x0, noise, _) = diffusion("v_prediction"), rows()
    a = alpha_bar(t)
    when = torch.full((len(x0),), t)
    torch.testing.assert_close(process.noised(x0, noise, when), a**0.5 * x0 + (1 - a) ** 0.5 * noise)
    torch.testing.assert_close(process.target(x0, noise, when), a**0.5 * noise - (1 - a) ** 0.5 * x0)
    assert float(process.snr(torch.tensor([t]))) == pytest.approx(a / (1 - a), rel=1e-4)


def test_error_identities_between_epsilon_and_v() -> None:
    """A v-prediction error is an epsilon error divided by alpha^2: e_eps = alpha^2 e_v."""
    v, (x0, noise, u) = diffusion("v_prediction"), rows()
    t = v.timestep(u)
    x_t = v.noised(x0, noise, t)
    prediction = v.target(x0, noise, t) + 0.1 * torch.randn_like(x0)
    clean = v.clean(prediction, x_t, t)
    alpha, sigma = (c.double().view(-1, 1, 1, 1) for c in v.coefficients(t))
    epsilon = (x_t - alpha * clean) / sigma
    e_v, e_eps = mean_square(prediction - v.target(x0, noise, t)), mean_square(epsilon - noise)
    torch.testing.assert_close(e_eps, v.epsilon_factor(t).double() * e_v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e_eps, alpha.flatten() ** 2 * e_v, rtol=1e-5, atol=1e-5)


def test_error_identities_of_flow() -> None:
    """e_x0 = s^2 e_v and e_eps = (1 - s)^2 e_v."""
    flow, (x0, noise, u) = Flow(), rows()
    s = flow.timestep(u)
    x_t = flow.noised(x0, noise, s)
    prediction = noise - x0 + 0.1 * torch.randn_like(x0)
    e_v = mean_square(prediction - flow.target(x0, noise, s))
    clean = flow.clean(prediction, x_t, s)
    w = s.double().view(-1, 1, 1, 1)
    torch.testing.assert_close(mean_square(clean - x0), s.double() ** 2 * e_v, rtol=1e-5, atol=1e-5)
    e_eps = mean_square((x_t - (1 - w) * clean) / w - noise)
    torch.testing.assert_close(e_eps, flow.epsilon_factor(s).double() * e_v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", [diffusion("epsilon"), diffusion("v_prediction"), diffusion("sample"), shifted()])
def test_the_target_decodes_to_the_data(process: Process) -> None:
    x0, noise, u = rows()
    t = process.timestep(u * 0.8)
    x_t = process.noised(x0, noise, t)
    torch.testing.assert_close(process.clean(process.target(x0, noise, t), x_t, t), x0, rtol=1e-3, atol=1e-4)


def test_shift_and_levels() -> None:
    u = torch.tensor([0.0, 0.25, 0.5, 0.999])
    torch.testing.assert_close(shifted().timestep(u), 3 * u / (1 + 2 * u))
    assert diffusion().timestep(u).tolist() == [0, 250, 500, 999]
    assert diffusion().level(torch.tensor([250])).item() == 0.25


def test_min_snr_in_every_parametrisation() -> None:
    t = torch.tensor([0, 200, 600, 999])
    a = torch.tensor([alpha_bar(int(i)) for i in t])
    snr = a / (1 - a)
    capped = snr.clamp(max=5.0)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
    close(MinSNR(5.0).weights(diffusion("epsilon"), t), capped / snr)
    close(MinSNR(5.0).weights(diffusion("v_prediction"), t), capped / (snr + 1))
    close(MinSNR(5.0).weights(diffusion("sample"), t), capped)
    s = torch.tensor([0.0, 0.1, 0.5, 1.0])
    expected = torch.tensor([0.0, 5 * 0.01, 1.0 * 0.25, 0.0])
    close(MinSNR(5.0).weights(Flow(), s), expected)
    torch.testing.assert_close(EpsilonSpace().weights(Flow(), s), (1 - s) ** 2)


def draws(sampler: TimestepSampler, count: int = 400) -> torch.Tensor:
    return torch.cat([sampler.draw(keyed_generator(i), i, STEPS) for i in range(count)])


def test_samplers() -> None:
    uniform = draws(Uniform(0.2, 0.6))
    assert 0.2 <= uniform.min() < 0.23
    assert 0.57 < uniform.max() < 0.6
    turbo = diffusion().timestep(draws(Turbo()))
    assert sorted(set(turbo.tolist())) == [249, 499, 749, 999]
    logits = torch.logit(draws(LogitNormal(0.5, 2.0), 2000))
    assert logits.mean().item() == pytest.approx(0.5, abs=0.15)
    assert logits.std().item() == pytest.approx(2.0, abs=0.1)
    assert diffusion().timestep(draws(RoundRobin([801, 694, 548, 338]), 5)).tolist() == [801, 694, 548, 338, 801]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Uniform(0.5, 0.5), "low=0.5"),
        (lambda: LogitNormal(std=0), "std must be"),
        (lambda: Turbo(0), "count must be"),
        (lambda: RoundRobin([]), "values must"),
        (lambda: RoundRobin([1000]).draw(torch.Generator(), 0, STEPS), "timestep 1000"),
        (lambda: MinSNR(0), "gamma must"),
        (lambda: diffusion("velocity"), "accepted: epsilon, v_prediction, sample"),
    ],
)
def test_refusals(build, said: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=said):
        build()
