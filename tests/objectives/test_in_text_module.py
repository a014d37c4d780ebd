"""Every objective in the text module: only the `objective` changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pl_prefopt import objectives
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import ADPO, IPO, IRPO, Mixture, Objective, PlackettLuce, SoftmaxDPO
from tests.objectives.test_configs import CLASSES, build
from tests.tiny import collate, nudge, random_rows, tiny_lm

torch.set_num_threads(1)
LISTS = [ADPO(targets="kde"), IRPO(), PlackettLuce(), SoftmaxDPO()]


def built(objective: Objective) -> TextPreferenceModule:
    torch.manual_seed(0)
    module = TextPreferenceModule(tiny_lm(), objective=objective)
    module.configure_model()
    nudge(module.policy, 0.05)
    return module.train()  # type: ignore[return-value]


def batch(count: int, ragged: bool = False) -> dict[str, Any]:
    out = collate(random_rows(3, count=count))
    out["relevance"] = torch.arange(count, 0, -1.0).expand(3, count)
    if ragged:
        out["list_mask"] = torch.arange(count) < torch.tensor([[count], [2], [count - 1]])
        out["completion_mask"] &= out["list_mask"][..., None]
    return out


@pytest.mark.parametrize("cls", [c for c in CLASSES if "errors" not in c.needs])
def test_one_step_lowers_the_loss_of_a_batch(cls: type[Objective]) -> None:
    module, data = built(build(cls)), batch(2) | {"margins": torch.rand(3, 2, 1)}
    if cls is not objectives.PlackettLuce and cls is not IRPO:
        data.pop("relevance")
    first = module.objective(module.score(data)).mean()
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(first, parameters, allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    assert torch.isfinite(norm)
    assert norm > 0
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                p -= 1e-3 / norm * g
    assert module.objective(module.score(data)).mean() < first


@pytest.mark.parametrize("objective", LISTS, ids=repr)
def test_ragged_lists_equal_their_short_selves(objective: Objective) -> None:
    module, data = built(objective), batch(4, ragged=True)
    losses = module.objective(module.score(data))
    short = {
        k: v[1:2, :2] if k in ("completion_ids", "completion_mask", "relevance") else v[1:2] for k, v in data.items()
    }
    del short["list_mask"]
    torch.testing.assert_close(losses[1:2], module.objective(module.score(short)), atol=1e-5, rtol=1e-5)


def test_a_mixture_of_means_is_the_sum_of_its_parts() -> None:
    data = batch(2)
    parts = [IPO(average="mean"), objectives.SimPO(), objectives.SFT()]
    alone = [built(p).objective(built(p).score(data)) for p in parts]
    together = built(Mixture(parts, [1.0, 0.5, 2.0]))
    want = alone[0] + 0.5 * alone[1] + 2 * alone[2]
    torch.testing.assert_close(together.objective(together.score(data)), want, atol=1e-4, rtol=1e-5)
