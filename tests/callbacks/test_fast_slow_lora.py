"""OFS-DPO: gradients of the definition, two learning rates in one optimizer, roles, resume, a foreign module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader, TensorDataset

from pl_prefopt.adapters import adapter_active, adapter_parameters
from pl_prefopt.callbacks import AdapterExport, FastSlowLoRA
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.test_adapter_export import data
from tests.callbacks.test_reference_sync import trainer
from tests.tiny import tiny_lm

LR = 0.5


class Denoiser(pl.LightningModule):
    """Somebody's diffusion model: log-ratios are differences of denoising errors, adapters were injected by peft."""

    def __init__(self, lora: bool = True, scheduled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.policy: Any = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4))
        self.frozen = copy.deepcopy(self.policy).requires_grad_(False)
        self.scheduled = scheduled
        if lora:
            inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"]), self.policy)
            for layer in self.policy:
                if hasattr(layer, "lora_A"):
                    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)

    def pair_logratios(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, rejected, noise = batch
        return self.ratio(chosen, noise), self.ratio(rejected, noise)

    def ratio(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        policy, frozen = (net(x + noise).sub(noise).square().sum(-1) for net in (self.policy, self.frozen))
        return -(policy - frozen) / 2

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        chosen, rejected = self.pair_logratios(batch)
        return -logsigmoid(chosen - rejected).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.policy.parameters() if p.requires_grad], lr=LR)
        if not self.scheduled:
            return optimizer
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def loader(n: int = 16) -> DataLoader:
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 4, generator=g) + shift for shift in (1, 0, 0)]
    return DataLoader(TensorDataset(*rows), batch_size=4)


def weights(module: Any, name: str) -> list[torch.Tensor]:
    return [p.detach().clone() for p in adapter_parameters(module.policy, name).values()]


def margins(module: Any, batch: Any) -> torch.Tensor:
    chosen, rejected = module.pair_logratios(batch)
    return chosen - rejected


@pytest.mark.parametrize("scheduled", [False, True])
def test_one_step_is_the_gradient_of_the_definition(scheduled: bool, tmp_path: Path) -> None:
    beta, alpha, ratio = 0.7, 0.4, 0.25
    module, oracle = Denoiser(scheduled=scheduled), Denoiser()
    batch = next(iter(loader()))
    fast, slow = margins(oracle, batch), margins(oracle, batch)
    base, extra = -logsigmoid(beta * fast).mean(), -logsigmoid(beta * (fast - slow.detach())).mean()
    own = list(adapter_parameters(oracle.policy, "default").values())
    grads_fast = torch.autograd.grad(base + alpha * extra, own, retain_graph=True)
    chased = -logsigmoid(beta * slow).mean() + alpha * logsigmoid(beta * (fast.detach() - slow)).mean()
    grads_slow = torch.autograd.grad(chased, own)
    start = weights(module, "default")
    callback = FastSlowLoRA(beta=beta, alpha=alpha, ratio=ratio)
    run = trainer(tmp_path, callback, max_steps=1)
    run.fit(module, loader())
    for p, g, now in zip(start, grads_fast, weights(module, "default"), strict=True):
        torch.testing.assert_close(now, p - LR * g, rtol=0, atol=1e-6)
    for p, g, now in zip(start, grads_slow, weights(module, "slow"), strict=True):
        torch.testing.assert_close(now, p - ratio * LR * g, rtol=0, atol=1e-6)
    assert len(run.optimizers) == 1
    assert len(run.optimizers[0].param_groups) == 1
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(float(2 * base.detach()), abs=1e-5)


def test_two_groups_during_the_step_follow_the_schedule(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append([g["lr"] for g in optimizer.param_groups])

    trainer(tmp_path, FastSlowLoRA(ratio=0.5), Watch(), max_steps=3).fit(Denoiser(scheduled=True), loader())
    assert [len(rates) for rates in seen] == [2, 2, 2]
    assert all(slow == pytest.approx(0.5 * fast) for fast, slow in seen)
    assert seen[0][0] == LR > seen[1][0] > seen[2][0]


def test_alpha_zero_is_two_independent_runs(tmp_path: Path) -> None:
    both, alone = Denoiser(), Denoiser()
    trainer(tmp_path, FastSlowLoRA(beta=1.0, alpha=0.0, ratio=1.0), max_steps=4).fit(both, loader())
    trainer(tmp_path, max_steps=4).fit(alone, loader())
    for a, b, c in zip(*(weights(*w) for w in ((both, "default"), (both, "slow"), (alone, "default"))), strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=0, atol=1e-6)


def test_the_better_adapter_of_the_last_steps_is_made_the_fast_one(tmp_path: Path) -> None:
    """A fast rate so large that it diverges: after K steps the slow adapter is better and changes places."""
    module = Denoiser()
    callback = FastSlowLoRA(beta=1.0, ratio=0.01, every_n_steps=2)
    run = trainer(tmp_path, callback, max_steps=2)
    module.configure_optimizers = lambda: torch.optim.Adam(  # type: ignore[method-assign]
        [p for p in module.policy.parameters() if p.requires_grad], lr=3.0
    )
    run.fit(module, loader())
    assert callback.swaps == 1
    state = run.optimizers[0].state
    fast, slow = (list(adapter_parameters(module.policy, n).values()) for n in ("default", "slow"))
    moved = [float((p - q).norm()) for p, q in zip(slow, weights(Denoiser(), "default"), strict=True)]
    kept = [float((p - q).norm()) for p, q in zip(fast, weights(Denoiser(), "default"), strict=True)]
    assert min(moved) > 10 * max(kept), "the wild one is slow now"
    assert not torch.equal(state[fast[0]]["exp_avg"], state[slow[0]]["exp_avg"])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def fit(module: Denoiser, epochs: int, **options: Any) -> pl.Trainer:
        run = trainer(tmp_path, FastSlowLoRA(beta=1.0, every_n_steps=3), max_epochs=epochs)
        run.fit(module, loader(), **options)
        return run

    whole, cut, resumed = Denoiser(), Denoiser(), Denoiser()
    fit(whole, 3)
    fit(cut, 1).save_checkpoint(tmp_path / "a.ckpt")
    fit(resumed, 3, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    for name in ("default", "slow"):
        assert all(torch.equal(a, b) for a, b in zip(weights(whole, name), weights(resumed, name), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(weights(whole, name), weights(cut, name), strict=True))


def test_only_the_fast_adapter_is_exported(tmp_path: Path) -> None:
    module = TextPreferenceModule(tiny_lm(lora=True), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    run = trainer(tmp_path, FastSlowLoRA(), AdapterExport(str(tmp_path / "out")), max_epochs=1)
    run.fit(module, datamodule=data(tmp_path))
    assert not (tmp_path / "out/slow").exists()
    base: Any = tiny_lm()()
    loaded: Any = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids, network = torch.tensor([[3, 4, 5, 6]]), module.policy.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, network(input_ids=ids).logits, rtol=0, atol=1e-6)
        with adapter_active(network, "slow"):
            assert not torch.allclose(network(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert "train/margin" in run.callback_metrics


def test_the_module_gets_its_own_step_back(tmp_path: Path) -> None:
    module = Denoiser()
    trainer(tmp_path, FastSlowLoRA(), max_steps=1).fit(module, loader())
    assert "training_step" not in vars(module)
    trainer(tmp_path, FastSlowLoRA(), max_steps=1).fit(module, loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta"), ({"alpha": -0.1}, "alpha"), ({"ratio": 0.0}, "ratio"), ({"ratio": 1.5}, "ratio"),
        ({"every_n_steps": 0}, "every_n_steps"), ({"clamp": 0.0}, "clamp"), ({"adapter": "slow"}, "adapter"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastSlowLoRA(**options)


def test_what_a_module_lacks_is_named(tmp_path: Path) -> None:
    class Bare(Denoiser):
        pair_logratios = None  # type: ignore[assignment]

    class Early(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.mine = [p for p in self.policy.parameters() if p.requires_grad]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.mine, lr=LR)

    class Nan(Denoiser):
        def ratio(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            return super().ratio(x, noise) * float("nan")

    cases: list[tuple[pl.LightningModule, type[Exception], str]] = [
        (Bare(), TypeError, r"FastSlowLoRA requires Bare\.pair_logratios\(batch\)"),
        (Denoiser(lora=False), ValueError, "policy must have a peft adapter named 'default', got no adapters"),
        (Early(), ValueError, "must hold the parameters of the slow adapter"),
        (Nan(), ValueError, "train/loss must be finite, got nan at optimizer step 0"),
    ]
    for module, error, message in cases:
        with pytest.raises(error, match=message):
            trainer(tmp_path, FastSlowLoRA(), max_steps=1).fit(module, loader())
    checkpointing = TextPreferenceModule(tiny_lm(lora=True, gradient_checkpointing=True))
    with pytest.raises(ValueError, match="gradient_checkpointing must be false"):
        trainer(tmp_path, FastSlowLoRA(), max_steps=1).fit(checkpointing, datamodule=data(tmp_path))
