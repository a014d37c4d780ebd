"""Invariants of the image module on tiny models of every family."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from pl_prefopt.diffusion.timesteps import EpsilonSpace, LogitNormal, MinSNR, RoundRobin
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DPO, DSPO, IPO, DenoisingSFT, DiffusionKTO, LinearDPO, MaPO, Mixture, Objective, SimPO
from pl_prefopt.policies import FromCallable
from pl_prefopt.references import AdapterCopy, CachedReference, FrozenCopy
from tests.oracles.diffusion_dpo import official_loss
from tests.pictures import cached, module, pixel_batch, tiny_diffusion
from tests.tiny import nudge

FAMILIES = ("sd", "sdxl", "sd3", "flux")


def loss_of(made: ImagePreferenceModule, batch: dict[str, Any]) -> torch.Tensor:
    return made.objective(made.score(batch)).mean()


def gradients(made: ImagePreferenceModule) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in made.policy.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def batches() -> dict[str, dict[str, Any]]:
    """Cached batches of each family."""
    return {name: cached(pixel_batch(2), tiny_diffusion(name)) for name in (*FAMILIES, "sd-v")}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_starts_at_ln_2_and_trains(name: str, lora: bool, checkpointing: bool, batches: dict[str, Any]) -> None:
    made = module(tiny_diffusion(name, lora, gradient_checkpointing=checkpointing))
    scores = made.score(batches[name])
    assert torch.equal(scores.logratios, torch.zeros(2, 2))
    loss = made.objective(scores).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert scores.errors is not None
    assert (scores.errors[:, 0] != scores.errors[:, 1]).all()
    loss.backward()
    found = gradients(made)
    expected = {n for n, p in made.policy.named_parameters() if p.requires_grad}
    assert found.keys() <= expected
    assert all(("lora_" in n) == lora for n in found)
    assert sum(float(g.abs().sum()) for g in found.values()) > 0


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_checkpointing_changes_no_gradient(name: str, batches: dict[str, Any]) -> None:
    found = []
    for checkpointing in (True, False):
        made = module(tiny_diffusion(name, gradient_checkpointing=checkpointing))
        nudge(made.policy, 0.05)
        loss_of(made, batches[name]).backward()
        found.append(gradients(made))
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_equals_the_official_formula(name: str, batches: dict[str, Any]) -> None:
    policy = tiny_diffusion(name, lora=False)
    made = module(policy, objective=DPO(beta=30.0))
    reference = copy.deepcopy(made.policy)
    nudge(made.policy, 0.1)
    batch = batches[name]
    x0, draws = (inputs := made.noised_rows(batch)).x0, inputs.draws
    scheduler = policy.source().scheduler()
    expected = official_loss(
        made.policy, reference, x0.transpose(0, 1).flatten(0, 1), draws["noise"], draws["t"], batch["prompt_embeds"],
        30.0, name == "sd-v", scheduler.betas,
    )  # fmt: skip
    assert expected.item() != pytest.approx(math.log(2), abs=1e-3)
    torch.testing.assert_close(loss_of(made, batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_batch_equals_its_rows_one_by_one(name: str) -> None:
    policy = tiny_diffusion(name)
    whole = cached(pixel_batch(8), policy)
    made = module(policy, objective=DPO(beta=100.0), timesteps=LogitNormal(), noise_offset=0.1)
    nudge(made.policy, 0.1)
    loss = loss_of(made, whole)
    loss.backward()
    together = gradients(made)
    made.policy.zero_grad()
    total = 0.0
    for i in range(8):
        part = loss_of(made, {k: v[i : i + 1] for k, v in whole.items()}) / 8
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-5)
    for key, value in gradients(made).items():
        torch.testing.assert_close(value, together[key], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_changes_nothing(name: str) -> None:
    policy, batch = tiny_diffusion(name), pixel_batch(3)
    made = module(policy)
    nudge(made.policy, 0.1)
    with torch.no_grad():
        a, b = made.score(batch), made.score(cached(batch, policy))
    torch.testing.assert_close(a.logratios, b.logratios, rtol=1e-4, atol=1e-7)
    assert (a.logratios != 0).all()


def test_swapping_the_samples_flips_the_margin(batches: dict[str, Any]) -> None:
    batch = batches["sd"]
    made = module(tiny_diffusion("sd"))
    nudge(made.policy, 0.1)
    # posterior samples belong to a place in the pair, so compare without them
    fixed = batch | {"latents_std": torch.zeros_like(batch["latents_std"])}
    flipped = fixed | {"latents_mean": fixed["latents_mean"].flip(1)}
    with torch.no_grad():
        a, b = made.score(fixed), made.score(flipped)
    torch.testing.assert_close(a.chosen - a.rejected, b.rejected - b.chosen, rtol=1e-4, atol=1e-8)


def test_randomness_belongs_to_the_row_and_the_step(batches: dict[str, Any]) -> None:
    made, batch = module(tiny_diffusion("sd")), batches["sd"]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    x0, draws = (inputs := made.noised_rows(batch)).x0, inputs.draws
    assert torch.equal(before, torch.get_rng_state())
    again = made.noised_rows({k: v[1:] for k, v in batch.items()})
    assert torch.equal(x0[1:], again.x0)
    assert torch.equal(draws["noise"][1:], again.draws["noise"])
    assert draws["noise"].shape == x0[:, 0].shape
    other = ImagePreferenceModule(tiny_diffusion("sd"), seed=5).noised_rows(batch)
    assert not torch.equal(draws["noise"], other.draws["noise"])


def test_moves_with_the_gradient(batches: dict[str, Any]) -> None:
    """A step down the gradient lowers the loss and raises the margin; frozen parts stay bit for bit."""
    made, batch = module(tiny_diffusion("sdxl"), objective=IPO(beta=50.0)), batches["sdxl"]
    frozen = {n: p.clone() for n, p in made.policy.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        loss = loss_of(made, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert made.objective.rewards(made.score(batch)).diff(dim=1).mean() < 0
    for name, value in frozen.items():
        assert torch.equal(value, made.policy.get_parameter(name)), name


def test_weights_and_reduction_scale_errors(batches: dict[str, Any]) -> None:
    batch = batches["sd-v"]
    made = module(tiny_diffusion("sd-v"), timesteps=RoundRobin([700]))
    plain = made.score(batch).errors
    assert plain is not None
    process, t = made.family.process, torch.tensor([700, 700])
    for weighting in (MinSNR(5.0), EpsilonSpace()):
        weighed = module(tiny_diffusion("sd-v"), timesteps=RoundRobin([700]), weighting=weighting).score(batch)
        torch.testing.assert_close(weighed.errors, plain * weighting.weights(process, t)[:, None])
    summed = module(tiny_diffusion("sd-v"), timesteps=RoundRobin([700]), reduction="sum").score(batch)
    torch.testing.assert_close(summed.errors, plain * batch["latents_mean"][0, 0].numel())


def test_time_ids_reach_sdxl(batches: dict[str, Any]) -> None:
    batch = batches["sdxl"]
    made = module(tiny_diffusion("sdxl"))
    a = made.score(batch).errors
    b = made.score(batch | {"time_ids": batch["time_ids"] * 3}).errors
    assert a is not None
    assert b is not None
    assert not torch.equal(a, b)


def test_row_metrics_split_margins_by_noise(batches: dict[str, Any]) -> None:
    batch = cached(pixel_batch(16), tiny_diffusion("sd"))
    made = module(tiny_diffusion("sd"), reference=FrozenCopy())
    nudge(made.policy, 0.1)
    scores = made.score(batch)
    rows = made.row_metrics(scores, made.objective(scores).detach())
    quarters = [rows[f"margin_q{i}"] for i in range(1, 5) if f"margin_q{i}" in rows]
    assert sum(len(q) for q in quarters) == 16
    torch.testing.assert_close(torch.cat(quarters).sum(), rows["margin"].sum())
    low = rows["margin"][scores.outputs["timestep"] < 250]
    torch.testing.assert_close(rows["margin_q1"], low)
    torch.testing.assert_close(rows["gradient_factor"], 1 / (1 + rows["margin"].exp()))
    assert rows.keys() <= set(made.metric_names)


OBJECTIVES = [
    MaPO(), DiffusionKTO(), LinearDPO(), DSPO(), DenoisingSFT(), Mixture([DPO(500.0), DenoisingSFT()], [1.0, 0.1]),
]  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_every_objective_of_errors_trains(objective: Objective, batches: dict[str, Any]) -> None:
    made, batch = module(tiny_diffusion("sd"), objective=objective), batches["sd"]
    assert (made.reference is not None) == ("reference" in objective.needs)
    trained = made.score(batch)
    assert trained.logratios.shape[1] == (2 if "rejected" in objective.needs else 1)
    losses = made.objective(trained)
    losses.mean().backward()
    assert sum(float(g.abs().sum()) for g in gradients(made).values()) > 0
    made.eval()
    shown = made.row_metrics(made.score(batch), losses.detach())
    assert all(torch.isfinite(v).all() for v in shown.values())
    assert {"accuracy", "margin", "rejected_error"} <= shown.keys()


def test_safeguard_shrinks_the_losers_gradient_only(batches: dict[str, Any]) -> None:
    batch = batches["sd"]
    plain, guarded = (module(tiny_diffusion("sd"), safeguard=mu) for mu in (None, 0.6))
    a, b = plain.score(batch), guarded.score(batch)
    torch.testing.assert_close(a.logratios, b.logratios)
    share = b.outputs["safeguard"]
    assert 0 < share[0] < 1
    for column, factor in ((0, 1.0), (1, float(share[0]))):
        found = []
        for made, scores in ((plain, a), (guarded, b)):
            made.policy.zero_grad()
            scores.logratios[:, column].sum().backward(retain_graph=True)
            found.append(torch.cat([g.flatten() for g in gradients(made).values()]))
        assert found[0].abs().max() > 0
        torch.testing.assert_close(found[1], factor * found[0], rtol=1e-3, atol=1e-7)
    assert "safeguard" not in guarded.eval().score(batch).outputs


def test_a_copied_adapter_starts_at_zero(batches: dict[str, Any]) -> None:
    made = module(tiny_diffusion("sd3"), reference=AdapterCopy())
    assert torch.equal(made.score(batches["sd3"]).logratios, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"safeguard": 1.0}, "safeguard must lie"),
        ({"reduction": "max"}, "reduction must be one of mean, sum"),
        ({"noise_offset": -0.1}, "noise_offset must be"),
        ({"reference": CachedReference("somewhere")}, "depend on timestep and noise"),
        ({"policy": FromCallable(lambda: torch.nn.Linear(1, 1))}, "does not say how its denoiser is called"),
        ({"objective": SimPO()}, "needs lengths, logps, which ImagePreferenceModule cannot give"),
    ],
)
def test_refuses_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImagePreferenceModule(**{"policy": tiny_diffusion("sd"), **options})


def test_refuses_batches(batches: dict[str, Any]) -> None:
    made = module(tiny_diffusion("flux"))
    batch = batches["flux"]
    with pytest.raises(ValueError, match="must have latents_mean and latents_std, or pixels, got caption"):
        made.score({"caption": ["a"]})
    with pytest.raises(ValueError, match="multiples of 2"):
        made.score(batch | {k: batch[k][..., :7] for k in ("latents_mean", "latents_std")})
    with pytest.raises(ValueError, match="multiples of 2"):
        made.score({**pixel_batch(1), "pixels": torch.zeros(1, 2, 3, 16, 15)})
