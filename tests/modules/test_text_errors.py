"""What must be refused before the first step, and what a checkpoint remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import DPO, IPO, TDPO
from pl_prefopt.policies import CausalLM
from pl_prefopt.references import CachedReference
from pl_prefopt.references.cache import CachedCollate, CachedRows, LogpCache, lookup
from tests.tiny import LORA, QWEN2, collate, nudge, random_rows, tiny_lm


class Rows(list):
    """Token rows with what a cached reference asks for."""

    def digest(self) -> str:
        return str(hash(str(self)))

    @property
    def lengths(self) -> list[int]:
        return [len(r["prompt_ids"]) + max(map(len, r["completion_ids"])) for r in self]


class Data(pl.LightningDataModule):
    """Random token rows; `broken` puts a NaN weight into one row."""

    def __init__(self, rows: int = 12, vocab: int = 61, broken: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.vocab_size = vocab
        self.broken = broken
        items = [{**r, "index": i} for i, r in enumerate(random_rows(rows, seed=seed))]
        self.datasets = {"train": Rows(items), "val": Rows(items[:5])}

    def names(self, stage: str) -> list[str]:
        return [n for n in self.datasets if n == stage]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        batch["index"] = torch.tensor([r["index"] for r in rows])
        if self.broken is not None:
            batch["weight"] = torch.where(batch["index"] == self.broken, float("nan"), 1.0)
        return batch

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.datasets["train"], batch_size=4, collate_fn=self.collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.datasets["val"], batch_size=2, collate_fn=self.collate)  # type: ignore[arg-type]


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def module(policy: Any = None, lr: float = 0.1, **options: Any) -> TextPreferenceModule:
    return TextPreferenceModule(policy or tiny_lm(), optimizer=lambda p: torch.optim.SGD(p, lr=lr), **options)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    model = module()
    model.configure_model()
    before = [p.clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"train/loss is nan at optimizer step 1, rows \[4, 5, 6, 7\]"):
        trainer(tmp_path).fit(model, datamodule=Data(broken=6))
    after = list(model.policy.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the first, good step was taken"


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer has 62 tokens but the model embeds 61"):
        trainer(tmp_path).fit(module(), datamodule=Data(vocab=62))


def test_an_objective_on_the_distribution_cannot_use_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="full distribution"):
        module(objective=TDPO(), reference=CachedReference(str(tmp_path)))


@pytest.mark.parametrize("changed", ["weights", "tokens", "dtype"])
def test_a_foreign_cache_is_refused_by_name(changed: str, tmp_path: Path) -> None:
    reference = CachedReference(str(tmp_path / "cache"))
    trainer(tmp_path).fit(module(reference=reference), datamodule=Data())
    policy = tiny_lm(seed=5) if changed == "weights" else tiny_lm(dtype="bfloat16") if changed == "dtype" else tiny_lm()
    data = Data(seed=3) if changed == "tokens" else Data()
    with pytest.raises(ValueError, match=rf"reference cache .* made by other .*{changed}"):
        trainer(tmp_path).fit(module(policy, reference=reference), datamodule=data)


def test_a_streamed_training_set_cannot_be_cached(tmp_path: Path) -> None:
    data = Data()
    del data.datasets["train"]
    with pytest.raises(ValueError, match="they are streamed: set streaming: false"):
        trainer(tmp_path).fit(module(reference=CachedReference(str(tmp_path))), datamodule=data)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("policy", [tiny_lm(), tiny_lm(lora=True)], ids=["full", "lora"])
def test_log_ratios_are_zero_at_the_start_in_every_precision(policy: CausalLM, precision: Any, tmp_path: Path) -> None:
    model = module(policy)
    run = trainer(tmp_path, precision=precision, limit_train_batches=0)
    values = run.validate(model, datamodule=Data(), verbose=False)[0]
    assert values["val/chosen_logratio"] == values["val/rejected_logratio"] == 0
    assert values["val/loss"] == pytest.approx(0.6931471805599453, abs=1e-7)
    assert values["val/accuracy"] == 0.5


def test_objective_and_learning_rate_do_not_invalidate_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = CachedReference(str(tmp_path / "cache"))
    trainer(tmp_path).fit(module(reference=reference), datamodule=Data())

    def never(*_: Any) -> None:
        raise AssertionError("the reference was run again")

    monkeypatch.setattr(TextPreferenceModule, "reference_logps", never)
    trainer(tmp_path).fit(module(reference=reference, objective=IPO(), lr=0.5), datamodule=Data())


def test_an_interrupted_cache_is_continued_not_restarted(tmp_path: Path) -> None:
    key = {"weights": "w", "tokens": "t", "dtype": "d"}
    done: list[int] = []

    def compute(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(rows[0])
        return torch.full((len(rows), 2, 3), float(rows[0])), torch.full((len(rows), 2), 3)

    cache = LogpCache(tmp_path / "train", key, 1000)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(compute)
    again = LogpCache(tmp_path / "train", key, 1000)
    assert again.parts.missing() == [1]
    done.clear()
    again.fill(compute)
    again.load()
    assert [again.row(row)[0].tolist() for row in (0, 999)] == [[0.0] * 3, [512.0] * 3]


def test_rows_bring_their_cached_values_and_other_token_counts_are_refused(tmp_path: Path) -> None:
    rows = [{"index": i} for i in range(3)]
    cached = CachedRows(rows)  # type: ignore[arg-type]
    collate = CachedCollate(lambda rows: {"index": torch.tensor([row["index"] for row in rows])})
    assert lookup(collate([cached[0]]), torch.tensor([[2, 1]])) is None, "nothing is cached yet"
    cached.cache = LogpCache(tmp_path, {}, 3)
    values, lengths = torch.tensor([[[-1.0, -2.0], [-3.0, 0.0]]]), torch.tensor([[2, 1]])
    cached.cache.fill(lambda part: (values * torch.tensor(part)[:, None, None], lengths.expand(len(part), 2)))
    cached.cache.load()
    batch = collate([cached[2], cached[1]])
    torch.testing.assert_close(lookup(batch, lengths.expand(2, 2)), torch.cat([2 * values, values]))
    torch.testing.assert_close(lookup(batch, lengths.expand(2, 2)[:, :1]), torch.cat([2 * values, values])[:, :1])
    with pytest.raises(ValueError, match=r"rows \[1\] must have the token counts of the reference cache"):
        lookup(batch, torch.tensor([[2, 1], [2, 2]]))


@pytest.mark.parametrize("policy", [tiny_lm(), tiny_lm(lora=True)], ids=["full", "lora"])
def test_checkpoints_hold_trainables_and_plain_hparams(policy: CausalLM, tmp_path: Path) -> None:
    model = module(policy, objective=IPO(beta=0.2))
    run = trainer(tmp_path)
    run.fit(model, datamodule=Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [k for k in saved["state_dict"] if k.startswith("reference.")]
    if policy.lora:
        assert all("lora_" in k for k in saved["state_dict"])
    loaded = TextPreferenceModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.objective == IPO(beta=0.2)
    batch = Data().collate(Data().datasets["val"])
    got, want = (m.eval().score(batch).logratios for m in (loaded, model))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert model.score(batch).logratios.abs().max() > 0


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(module(), datamodule=Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="belongs to another model"):
        TextPreferenceModule.load_from_checkpoint(
            tmp_path / "a.ckpt", policy=tiny_lm(config={**QWEN2, "hidden_size": 8})
        )


def test_resuming_under_other_hyper_parameters_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(module(objective=DPO(beta=0.1)), datamodule=Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"objective\.init_args\.beta: 0\.1 != 0\.5"):
        trainer(tmp_path).fit(module(objective=DPO(beta=0.5)), datamodule=Data(), ckpt_path=tmp_path / "a.ckpt")


def test_a_class_in_a_checkpoint_is_looked_up_never_imported(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(module(), datamodule=Data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    state["hyper_parameters"]["objective"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}
    torch.save(state, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"'subprocess\.Popen' is not a known Objective"):
        TextPreferenceModule.load_from_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of pretrained"),
        ({"pretrained": "x", "config": QWEN2}, "exactly one of pretrained"),
        ({"config": {"hidden_size": 8}}, "model_type"),
        ({"config": QWEN2, "dtype": "fp32"}, "dtype must be one of float32"),
        ({"config": QWEN2, "lora": {**LORA, "rank": 4}}, "'rank' is not an argument of peft.LoraConfig"),
        ({"config": QWEN2, "lora": LORA, "adapter": "x"}, "not both"),
    ],
)
def test_bad_policies_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalLM(**options)


def test_an_unknown_model_type_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'qwen22'. Did you mean 'qwen2'\?"):
        CausalLM(config={**QWEN2, "model_type": "qwen22"})()


def test_validation_metrics_are_exact_with_an_uneven_last_batch(tmp_path: Path) -> None:
    model = module()
    model.configure_model()
    nudge(model.policy)
    data = Data()
    values = trainer(tmp_path).validate(model, datamodule=data, verbose=False)[0]
    model.eval()
    scores = model.score(data.collate(data.datasets["val"]))
    assert values["val/loss"] == pytest.approx(model.objective(scores).mean().item(), abs=1e-5)
    assert values["val/chosen_logratio"] == pytest.approx(scores.chosen.mean().item(), abs=1e-4)
    assert values["val/length_chosen"] == pytest.approx(scores.lengths[:, 0].float().mean().item())  # type: ignore[index]
