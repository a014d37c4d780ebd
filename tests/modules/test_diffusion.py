"""Denoisers of one and of three axes: the invariants hold, features have positions, unknown shapes are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.families import Condition, Family
from pl_prefopt.diffusion.processes import Flow
from pl_prefopt.metrics.functional import ches_score
from pl_prefopt.modules.diffusion import DiffusionPreferenceModule
from pl_prefopt.objectives import DPO
from pl_prefopt.policies import PolicyBuilder
from tests.tiny import nudge

SHAPES = {1: (3, 10), 3: (2, 4, 3, 2)}
LN2 = 0.6931471805599453


class ToyNetwork(nn.Module):
    """A convolution, a text and a duration condition, and an output convolution."""

    def __init__(self, dimensions: int, channels: int) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 3: nn.Conv3d}[dimensions]
        self.enter = kind(channels, 8, 3, padding=1)
        self.text = nn.Linear(5, 8)
        self.leave = kind(8, channels, 1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, seconds: Tensor) -> Tensor:
        pooled = (self.text(text) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        scale = pooled + t[:, None] + seconds[:, None]
        return self.leave(torch.tanh(self.enter(x) + scale.view(*scale.shape, *[1] * (x.dim() - 2))))


class ToyFamily(Family):
    """Masked text and a duration beside the noise."""

    output_layer = "leave"
    channels_first = True
    text_keys = ("prompt_embeds", "prompt_mask")
    condition_keys = ("seconds",)

    def __init__(self, dimensions: int) -> None:
        super().__init__(Flow())
        self.dimensions = dimensions  # type: ignore[misc]

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return network(x_t, t, cond["prompt_embeds"], cond["prompt_mask"], cond["seconds"])


class Toy(PolicyBuilder):
    def __init__(self, dimensions: int = 1, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed

    def __call__(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return ToyNetwork(self.dimensions, SHAPES[self.dimensions][0])

    def family(self) -> ToyFamily:
        return ToyFamily(self.dimensions)

    def conditioner(self, device: torch.device) -> None:
        raise AssertionError("everything is cached")

    def export(self, policy: nn.Module, folder: Path) -> None:
        torch.save(policy.state_dict(), folder / "weights.pt")


def batch(dimensions: int, rows: int = 4, start: int = 0) -> dict[str, Any]:
    def random(row: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(100 + row))

    numbers = range(start, start + rows)
    mean = torch.stack([random(i, 2, *SHAPES[dimensions]) for i in numbers])
    return {
        "latents_mean": mean,
        "latents_std": torch.full_like(mean, 0.1),
        "prompt_embeds": torch.stack([random(i, 6, 5) for i in numbers]),
        "prompt_mask": torch.tensor([[1.0] * (2 + i % 4) + [0.0] * (4 - i % 4) for i in numbers]),
        "seconds": torch.tensor([0.1 * i for i in numbers]),
        "index": torch.tensor(numbers),
    }


def module(dimensions: int, **options: Any) -> DiffusionPreferenceModule:
    built = DiffusionPreferenceModule(Toy(dimensions), **options)
    built.configure_model()
    return built.train()  # type: ignore[return-value]


@pytest.mark.parametrize("dimensions", SHAPES)
def test_at_step_zero_log_ratios_are_exactly_zero(dimensions: int) -> None:
    built = module(dimensions)
    scores = built.score(batch(dimensions))
    assert torch.equal(scores.logratios, torch.zeros(4, 2))
    assert built.objective(scores).tolist() == pytest.approx([LN2] * 4, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("dimensions", SHAPES)
def test_one_batch_equals_single_rows_with_noise_offset_too(dimensions: int, offset: float) -> None:
    built = module(dimensions, objective=DPO(beta=50.0), noise_offset=offset)
    nudge(built.policy, 0.1)
    whole = built.score(batch(dimensions)).logratios
    rows = [built.score(batch(dimensions, rows=1, start=i)).logratios for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dimensions", SHAPES)
def test_an_offset_is_one_number_per_channel(dimensions: int) -> None:
    plain, shifted = (module(dimensions, noise_offset=o).noised_rows(batch(dimensions)).draws for o in (0.0, 0.5))
    shift = (shifted["noise"] - plain["noise"]).flatten(2)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), atol=1e-6, rtol=0)
    assert shift[..., 0].unique().numel() == shift[..., 0].numel()


@pytest.mark.parametrize("dimensions", SHAPES)
def test_features_have_positions_and_channels_in_their_places(dimensions: int) -> None:
    built = module(dimensions)
    chosen, mask, rejected, _ = built.pair_hidden_states(batch(dimensions))
    positions = torch.Size(SHAPES[dimensions][1:]).numel()
    assert chosen.shape == rejected.shape == (4, positions, 8)
    assert mask.shape == (4, positions)
    assert mask.all()
    inputs = built.noised_rows(batch(dimensions))
    seen: list[Tensor] = []
    hook = built.policy.leave.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr]
    built.measure(built.policy, inputs)
    hook.remove()
    torch.testing.assert_close(chosen[1, 3], seen[0].unflatten(0, (4, 2))[1, 0].flatten(1)[:, 3])
    assert ches_score(*built.pair_hidden_states(batch(dimensions))).isfinite().all()


def test_the_mask_of_the_text_and_the_duration_reach_the_network() -> None:
    built, rows = module(1), batch(1)
    nudge(built.policy, 0.5)
    scores = built.score(rows).logratios
    behind_mask = rows["prompt_embeds"] + 9 * (1 - rows["prompt_mask"])[..., None]
    torch.testing.assert_close(built.score(rows | {"prompt_embeds": behind_mask}).logratios, scores)
    assert not torch.allclose(built.score(rows | {"seconds": rows["seconds"] + 1}).logratios, scores)


def test_unknown_shapes_and_missing_conditions_are_refused() -> None:
    built, rows = module(1), batch(1)
    with pytest.raises(ValueError, match=r"channels and 1 further axes for ToyFamily, got shape \(2, 4, 3, 2\)"):
        built.score(rows | {k: v for k, v in batch(3).items() if k.startswith("latents")})
    with pytest.raises(ValueError, match="must have seconds, which ToyFamily is conditioned on"):
        built.score({k: v for k, v in rows.items() if k != "seconds"})
    built.family.channels_first = False  # type: ignore[misc]
    built.family.dimensions = 1  # type: ignore[misc]
    three = module(3)
    three.family.channels_first = False  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"ToyFamily\.leave must be given 3 axes, got shape \(8, 8, 4, 3, 2\)"):
        three.pair_hidden_states(batch(3))
    with pytest.raises(ValueError, match="cannot sample"):
        built.sample(["a sound"])


@pytest.mark.parametrize("dimensions", SHAPES)
def test_it_learns_and_the_reference_stays(dimensions: int) -> None:
    built = module(dimensions, objective=DPO(beta=20.0))
    before = [p.clone() for p in built.reference.parameters()]  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(built.policy.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = built.losses(built.score(batch(dimensions))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.equal(a, b) for a, b in zip(before, built.reference.parameters(), strict=True))  # type: ignore[union-attr]
