"""The alarm goes off when chosen falls while the margin grows, and only then."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pl_prefopt.callbacks import LikelihoodDisplacementMonitor
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import SFT
from pl_prefopt.references import NoReference
from tests.callbacks.test_reference_sync import trainer
from tests.runs import write_pairs
from tests.tiny import tiny_lm


class Foreign(pl.LightningModule):
    """Two numbers that move by fixed speeds per step: the chosen and the rejected log-ratio."""

    def __init__(self, chosen: float, rejected: float) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(1, 2, bias=False)
        torch.nn.init.zeros_(self.policy.weight)
        self.speed = torch.tensor([chosen, rejected])

    def pair_logratios(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.policy(batch[0])
        return out[:, 0], out[:, 1]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return -(self.policy(torch.ones(1, 1)) * self.speed).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def rows(n: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(n, 1)), batch_size=2)


@pytest.mark.parametrize(
    ("speeds", "fires"),
    [((-1.0, -3.0), True), ((1.0, -3.0), False), ((-3.0, -1.0), False)],
    ids=["both fall, margin grows", "chosen rises", "margin shrinks"],
)
def test_it_fires_on_displacement_only(speeds: tuple[float, float], fires: bool, tmp_path: Path) -> None:
    monitor = LikelihoodDisplacementMonitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, monitor, max_epochs=2, num_sanity_val_steps=0).fit(Foreign(*speeds), rows(6), rows(4))
    warned = [str(w.message) for w in caught if "likelihood displacement" in str(w.message)]
    assert bool(warned) is fires
    assert [h["step"] for h in monitor.history] == [3, 6]
    assert monitor.history[0]["chosen_change"] == pytest.approx(3 * speeds[0])
    assert monitor.history[1]["margin_change"] == pytest.approx(6 * (speeds[0] - speeds[1]))
    assert monitor.history[0]["share"] == float(speeds[0] < 0)
    assert (tmp_path / "displacement.png").stat().st_size > 1000
    if fires:
        assert "epoch 0: the margin grew by 6 nats while the chosen samples fell by 3; 100% of the watched" in warned[0]


def test_the_worst_rows_are_named_by_their_ids(tmp_path: Path) -> None:
    class Named(Foreign):
        def pair_logratios(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return super().pair_logratios([batch["x"]])

    watched: Any = [{"x": torch.tensor([x]), "index": 100 + i} for i, x in enumerate([1.0, 3.0, 2.0, 5.0])]
    with pytest.warns(UserWarning, match=r"100% of the watched pairs, worst rows \[103, 101, 102\]"):
        trainer(tmp_path, LikelihoodDisplacementMonitor(), max_epochs=1, num_sanity_val_steps=0).fit(
            Named(-1.0, -3.0), rows(6), DataLoader(watched, batch_size=2)
        )


def test_other_rows_than_at_the_start_are_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, LikelihoodDisplacementMonitor(), max_epochs=1, num_sanity_val_steps=0)
    first.fit(Foreign(1.0, -1.0), rows(6), rows(4))
    monitor = first.callbacks[0]  # type: ignore[attr-defined]
    assert isinstance(monitor, LikelihoodDisplacementMonitor)
    state = monitor.state_dict()
    state["start"][:, 0] += 50
    monitor.load_state_dict(state)
    with pytest.raises(ValueError, match="none of the 4 watched rows was watched at the start"):
        trainer(tmp_path, monitor, max_epochs=1, num_sanity_val_steps=0).fit(Foreign(1.0, -1.0), rows(6), rows(4))


def test_it_can_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, LikelihoodDisplacementMonitor(stop=True), max_epochs=9, num_sanity_val_steps=0)
    run.fit(Foreign(-1.0, -3.0), rows(6), rows(4))
    assert run.current_epoch == 1


def test_a_resumed_run_compares_with_the_first_start(tmp_path: Path) -> None:
    first = trainer(tmp_path, LikelihoodDisplacementMonitor(), max_epochs=1, num_sanity_val_steps=0)
    first.fit(Foreign(1.0, -1.0), rows(6), rows(4))
    first.save_checkpoint(tmp_path / "a.ckpt")
    monitor = LikelihoodDisplacementMonitor()
    again = trainer(tmp_path, monitor, max_epochs=2, num_sanity_val_steps=0)
    again.fit(Foreign(1.0, -1.0), rows(6), rows(4), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert [h["chosen_change"] for h in monitor.history] == pytest.approx([3.0, 6.0])


def test_the_text_module_is_watched(tmp_path: Path) -> None:
    """Likelihood training raises the chosen log-probability: no alarm, and the change is that of the log-probs."""
    data = TextPreferenceDataModule(
        train=write_pairs(tmp_path / "train.jsonl", 16),
        val=write_pairs(tmp_path / "val.jsonl", 5),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    module = TextPreferenceModule(
        tiny_lm(), objective=SFT(), reference=NoReference(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5)
    )
    monitor = LikelihoodDisplacementMonitor(batches=9)
    run = trainer(tmp_path, monitor, max_epochs=1, num_sanity_val_steps=0)
    before = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]["val/chosen_logp"]
    run.fit(module, datamodule=data)
    after = float(run.callback_metrics["val/chosen_logp"])
    assert monitor.history[0]["chosen_change"] == pytest.approx(after - before, abs=1e-3)
    assert after > before


@pytest.mark.parametrize(("options", "message"), [({"batches": 0}, "batches"), ({"tolerance": -1.0}, "tolerance")])
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LikelihoodDisplacementMonitor(**options)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    class Bare(Foreign):
        pair_logratios = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="pair_logratios"):
        trainer(tmp_path, LikelihoodDisplacementMonitor(), max_steps=1).fit(Bare(1, 1), rows(4), rows(4))
    with pytest.raises(ValueError, match="validation set must be given, got none"):
        trainer(tmp_path, LikelihoodDisplacementMonitor(), max_steps=1).fit(Foreign(1, 1), rows(4))
