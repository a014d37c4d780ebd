"""The mixture moves to the useful source: in a foreign module, alone and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pl_prefopt.callbacks import GroupInfluenceMixture
from pl_prefopt.callbacks.support.influence_probe import Probe, differentiable_twice, find_sources
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.mixtures.sources import SourceSampler
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.everywhere import Denoiser, Images
from tests.callbacks.test_reference_sync import trainer
from tests.runs import write_pairs
from tests.tiny import tiny_lm

SOURCES = {"useful": range(0, 32), "noise": range(32, 64), "harmful": range(64, 96)}


class Regression(pl.LightningModule):
    """Somebody's own module, without pairs of text: y = x . w, squared error per row."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(5, 1, bias=False)
        torch.nn.init.zeros_(self.policy.weight)

    def pair_losses(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return 0.5 * (self.policy(x)[:, 0] - y).square()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.pair_losses(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def table(kind: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one source: the true relation, labels that are noise, the opposite relation."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    truth = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])
    return x, (truth, torch.randn(n, generator=g), -truth)[kind]


def loaders() -> tuple[DataLoader, DataLoader]:
    parts = [table(kind, 32, kind) for kind in range(3)]
    rows = TensorDataset(*(torch.cat(column) for column in zip(*parts, strict=True)))
    train = DataLoader(rows, batch_size=8, sampler=SourceSampler(SOURCES, block=8))
    return train, DataLoader(TensorDataset(*table(0, 32, 9)), batch_size=8)


@pytest.mark.parametrize("method", ["identity", "diagonal", "cg"])
def test_a_foreign_module_gets_more_of_the_useful_source(method: str, tmp_path: Path) -> None:
    callback = GroupInfluenceMixture(every_n_steps=3, method=method, entropy=0.3)
    train, val = loaders()
    run = trainer(tmp_path, callback, max_steps=7)
    run.fit(Regression(), train, val)
    assert [h["step"] for h in callback.history] == [3, 6]
    first = callback.history[0]["weights"]
    assert first["useful"] > 0.6 > 0.3 > first["noise"] > first["harmful"]
    assert json.loads((tmp_path / "mixture.json").read_text()) == callback.history


def test_the_probe_computes_gradients_and_products_of_the_definition(tmp_path: Path) -> None:
    """Squared errors: the Hessian is the mean of x x^T, the influence a dense solve."""
    found: list[Any] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            with differentiable_twice(pl_module):
                probe = Probe(trainer, pl_module, find_sources(trainer.train_dataloader), rows=32)
                influence = probe.influence([trainer.val_dataloaders], "cg", damping=0.0, steps=50)
                found.append((influence, pl_module.policy.weight[0].detach().clone()))

    train, val = loaders()
    train.dataset.tensors[0].mul_(1.5)  # type: ignore[attr-defined]
    trainer(tmp_path, Watch(), max_steps=1).fit(Regression(), train, val)
    influence, w = found[0]
    x, y = (t.double() for t in train.dataset.tensors)  # type: ignore[attr-defined]
    u, v = (t.double() for t in val.dataset.tensors)  # type: ignore[attr-defined]
    w = w.double()
    held = u.T @ (u @ w - v) / len(u)
    hessian = sum(x[list(r)].T @ x[list(r)] / len(r) for r in SOURCES.values()) / 3
    grads = torch.stack([x[list(r)].T @ (x[list(r)] @ w - y[list(r)]) / len(r) for r in SOURCES.values()])
    want = grads @ torch.linalg.solve(hessian, held)  # type: ignore[arg-type]
    assert influence[0].tolist() == pytest.approx(want.tolist(), rel=1e-3)


def test_the_regression_variant_moves_the_same_way_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    class Fixed(Regression):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-12)

    module = Fixed()
    with torch.no_grad():
        module.policy.weight += torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    start = module.policy.weight.detach().clone()
    callback = GroupInfluenceMixture(every_n_steps=1, variant="regression", candidates=16, surrogate="sklearn")
    trainer(tmp_path, callback, max_steps=1).fit(module, *loaders())
    torch.testing.assert_close(module.policy.weight.detach(), start, rtol=0, atol=1e-6)
    weights = callback.history[0]["weights"]
    assert weights["useful"] > weights["harmful"]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def fit(module: Regression, epochs: int, **options: Any) -> pl.Trainer:
        run = trainer(tmp_path, GroupInfluenceMixture(every_n_steps=5), max_epochs=epochs)
        run.fit(module, *loaders(), **options)
        return run

    whole, resumed = Regression(), Regression()
    fit(whole, 3)
    fit(Regression(), 2).save_checkpoint(tmp_path / "a.ckpt")
    fit(resumed, 3, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(whole.policy.weight, resumed.policy.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps"), ({"method": "kfac"}, "method must be one of"), ({"rows": 0}, "rows"),
        ({"variant": "both"}, "variant"), ({"damping": -1.0}, "damping"), ({"candidates": 2}, "candidates"),
        ({"surrogate": "none"}, "surrogate"), ({"entropy": -1.0}, "entropy"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupInfluenceMixture(**options)


def test_loaders_that_are_made_anew_keep_the_weights(tmp_path: Path) -> None:
    ends = []
    for every in (0, 1):
        module = Denoiser(lora=True)
        callback = GroupInfluenceMixture(every_n_steps=3, rows=8, entropy=0.3)
        run = trainer(tmp_path, callback, max_epochs=3, reload_dataloaders_every_n_epochs=every)
        run.fit(module, datamodule=Images(sources=True))
        ends.append((callback.history, module.policy.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(value, ends[1][1][key]) for key, value in ends[0][1].items())


def text_sources(folder: Path, flipped: list[dict[str, Any]]) -> TextPreferenceDataModule:
    """Two sources, the second with these rows; validation is like the first."""
    write_pairs(folder / "rated.jsonl", 24)
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flipped))
    return TextPreferenceDataModule(
        train={"rated": str(folder / "rated.jsonl"), "other": str(folder / "other.jsonl")},
        val=write_pairs(folder / "val.jsonl", 16), tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=8, cache_dir=str(folder / "cache"),
    )  # fmt: skip


def test_flipped_labels_lose_their_weight(tmp_path: Path) -> None:
    write_pairs(tmp_path / "same.jsonl", 24)
    rows = [json.loads(line) for line in (tmp_path / "same.jsonl").read_text().splitlines()]
    data = text_sources(tmp_path, [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    module = TextPreferenceModule(tiny_lm(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    callback = GroupInfluenceMixture(every_n_steps=2, rows=24, entropy=0.3)
    trainer(tmp_path, callback, max_steps=6).fit(module, datamodule=data)
    assert [h["step"] for h in callback.history] == [2, 4, 6]
    assert all(h["weights"]["rated"] > 0.8 for h in callback.history)
    assert all(rated > 0 > other for h in callback.history for rated, other in h["influence"])
    loader: Any = data.train_dataloader()
    drawn = loader.plan.schedule
    assert drawn.weights.tolist() == pytest.approx([0.5, 0.5]), "a new loader begins anew"


def test_a_source_without_rows_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other"):
        trainer(tmp_path, GroupInfluenceMixture(), max_steps=1).fit(
            TextPreferenceModule(tiny_lm()), datamodule=text_sources(tmp_path, [])
        )
    with pytest.raises(ValueError, match=r"each with rows, got \['a', 'b'\], empty: \['b'\]"):
        SourceSampler({"a": [0, 1], "b": []})


def test_a_surrogate_that_is_not_installed_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pl_prefopt.callbacks.group_influence.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"surrogate 'lightgbm' is not installed; pip install 'pl_prefopt\[mixture\]'"):
        trainer(tmp_path, GroupInfluenceMixture(variant="regression"), max_steps=1).fit(Regression(), *loaders())
    run = trainer(tmp_path, GroupInfluenceMixture(), max_steps=1)
    run.fit(Regression(), *loaders())
    assert run.global_step == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    class Bare(Regression):
        @property
        def pair_losses(self) -> Any:  # type: ignore[override]
            raise AttributeError

    train, val = loaders()
    with pytest.raises(TypeError, match="pair_logratios"):
        trainer(tmp_path, GroupInfluenceMixture(), max_steps=1).fit(Bare(), train, val)
    with pytest.raises(ValueError, match="does not draw from named sources"):
        trainer(tmp_path, GroupInfluenceMixture(), max_steps=1).fit(Regression(), val, val)
    with pytest.raises(ValueError, match="needs a validation set"):
        trainer(tmp_path, GroupInfluenceMixture(), max_steps=1).fit(Regression(), train)
