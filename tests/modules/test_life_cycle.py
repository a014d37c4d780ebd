"""What every module refuses or warns about, whatever its modality."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import DPO, IPO, PlackettLuce, SoftmaxDPO
from pl_prefopt.scores import PairScores
from tests.modules.test_text_errors import Data, module, trainer
from tests.tiny import collate, random_rows, tiny_lm


def scored(objective: Any, count: int = 2, **columns: Tensor) -> Tensor:
    built = TextPreferenceModule(tiny_lm(), objective=objective)
    built.configure_model()
    return built.pair_losses({**collate(random_rows(4, count=count)), **columns})


@pytest.mark.parametrize("objective", [DPO(), IPO()])
def test_a_list_of_five_is_not_silently_a_pair(objective: Any) -> None:
    with pytest.raises(ValueError, match=r"must have two samples for (DPO|IPO), .* got 5. Use an objective of lists"):
        scored(objective, 5)
    assert scored(SoftmaxDPO(), 5).shape == (4,)
    assert scored(PlackettLuce(), 5, relevance=torch.arange(5.0).expand(4, 5)).shape == (4,)


@dataclass
class Scalar(DPO):
    """Forgets that losses are per row."""

    def __call__(self, scores: PairScores) -> Tensor:
        return super().__call__(scores).mean()


def test_an_objective_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective Scalar must return one loss per row, \(4,\), got \(\)"):
        scored(Scalar())


def test_weights_of_rows_count_in_losses_for_callbacks_and_in_evaluation(tmp_path: Path) -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(scored(DPO(), weight=weight).detach(), weight * math.log(2))

    class Weighted(Data):
        def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = super().collate(rows)
            return batch | {"weight": batch["index"].float()}

    values = trainer(tmp_path).validate(module(), datamodule=Weighted(), verbose=False)[0]
    assert values["val/loss"] == pytest.approx(math.log(2) * 2, abs=1e-6), "rows 0 to 4 have a mean weight of 2"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """An infinite learning rate wrote a checkpoint of NaN, after which the error called it good."""
    run = trainer(tmp_path, max_steps=1, callbacks=[])
    model = module(lr=float("inf"))
    run.fit(model, datamodule=Data())
    with pytest.raises(ValueError, match=r"weights must be finite to be saved, got policy.* after optimizer step 1"):
        run.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


@pytest.mark.parametrize(("losses", "warned"), [([0.4, 0.6, 0.8], True), ([0.6, 0.4, 0.5, 0.45, 0.5], False)])
def test_a_validation_loss_that_rises_twice_is_warned_about(losses: list[float], warned: bool, tmp_path: Path) -> None:
    class Rises(TextPreferenceModule):
        def measure_rows(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            loss = losses[self.current_epoch]
            return super().measure_rows(batch) | {"loss": torch.full((len(batch["index"]),), loss)}

    model = Rises(tiny_lm(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-4))
    run = pl.Trainer(
        accelerator="cpu", max_epochs=len(losses), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, datamodule=Data())
    assert any("the model overfits" in str(w.message) for w in caught) == warned
