"""Rounds: what is sampled, paired, replayed and trained on; ends without pairs; a foreign module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks import PreferenceRounds
from pl_prefopt.judges import Judge, LengthJudge, RegexJudge
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.references import AdapterCopy, AdapterOff, CachedReference, FrozenCopy
from pl_prefopt.rounds import AllPairs, BestWorst, ThresholdGap, TruthAgainstWorst
from pl_prefopt.rounds.files import SampledRow, pair_rows
from tests.callbacks.test_adapter_export import data
from tests.callbacks.test_reference_sync import Foreign, trainer
from tests.tiny import tiny_lm

SHORT = {"max_new_tokens": 5}


class Watch(pl.Callback):
    """Policy and reference at the first step of every epoch, and the number of its rows."""

    def __init__(self) -> None:
        self.policies: list[dict[str, torch.Tensor]] = []
        self.references: list[dict[str, torch.Tensor]] = []
        self.batches: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for kept, network in ((self.policies, pl_module.policy), (self.references, pl_module.reference.network)):
            kept.append({k: v.detach().clone() for k, v in network.named_parameters()})
        self.batches.append(trainer.num_training_batches)


def fitted(folder: Path, rounds: PreferenceRounds, *more: pl.Callback, epochs: int = 3, **options: Any) -> Any:
    arguments: dict[str, Any] = {"reference": FrozenCopy()} | options
    module = TextPreferenceModule(tiny_lm(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **arguments)
    run = trainer(folder, rounds, *more, max_epochs=epochs)
    run.fit(module, datamodule=data(folder))
    return run


def lines(folder: Path, number: int) -> list[dict[str, Any]]:
    file = folder / f"rounds/round-{number:03d}/pairs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pairs_come_from_the_policy_and_the_last_iterate_becomes_the_reference(tmp_path: Path) -> None:
    watch, judge = Watch(), LengthJudge(3)
    rounds = PreferenceRounds(judge, AllPairs(), replay=[0.5, 0.25], sampling=SHORT, piece=3, seed=1)
    run = fitted(tmp_path, rounds, watch)
    assert run.current_epoch == 3
    prompts = {row["prompt"] for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())}
    own = []
    for number in range(3):
        rows = lines(tmp_path, number)
        own.append([r for r in rows if r["round"] == number])
        assert rows[: len(own[-1])] == own[-1]
        earlier = [[r for r in rows if r["round"] == number - back] for back in (1, 2) if number >= back]
        assert [len(r) for r in earlier] == [int(s * len(o)) for s, o in zip((0.5, 0.25), own[-2::-1], strict=False)]
        assert all(r in own[number - 1 - i] for i, part in enumerate(earlier) for r in part)
        assert watch.batches[number] == len(rows) // 4
        for row in own[-1]:
            both = judge.score([""] * 2, [row["chosen"], row["rejected"]]).tolist()
            assert [row["score_chosen"], row["score_rejected"]] == pytest.approx(both)
            assert both[0] > both[1]
            assert row["prompt"] in prompts
        pieces = sorted((tmp_path / f"rounds/round-{number:03d}").glob("piece-*"))
        assert [len(json.loads(p.read_text())["rows"]) for p in pieces] == [3, 3, len(prompts) - 6]
    assert all(torch.equal(v, watch.policies[0][k]) for k, v in watch.references[0].items())
    for number in (1, 2):
        assert all(torch.equal(v, watch.policies[number][k]) for k, v in watch.references[number].items())
    assert any(not torch.equal(v, watch.policies[0][k]) for k, v in watch.policies[2].items())


def test_a_round_of_two_epochs_keeps_pairs_and_reference(tmp_path: Path) -> None:
    watch = Watch()
    rounds = PreferenceRounds(LengthJudge(3), AllPairs(), rounds=2, epochs_per_round=2, prompts=5, sampling=SHORT)
    run = fitted(tmp_path, rounds, watch, epochs=9)
    assert run.current_epoch == 4
    assert sorted(p.name for p in (tmp_path / "rounds").iterdir()) == ["round-000", "round-001"]
    first, second, third, fourth = watch.references
    assert all(torch.equal(first[k], second[k]) and torch.equal(third[k], fourth[k]) for k in first)
    assert any(not torch.equal(first[k], third[k]) for k in first)
    seen = [[r["condition"] for r in json.loads(p.read_text())["rows"]] for p in (tmp_path / "rounds").rglob("piece-*")]
    assert [len(s) for s in seen] == [5, 5]
    assert len(set(seen[0]) | set(seen[1])) == 8, "successive parts of one order"


def test_the_reference_stays_where_it_is_told_to(tmp_path: Path) -> None:
    watch = Watch()
    fitted(tmp_path, PreferenceRounds(LengthJudge(3), sync_reference=False, sampling=SHORT), watch, epochs=2)
    assert all(torch.equal(v, watch.policies[0][k]) for k, v in watch.references[1].items())


@pytest.mark.parametrize("rule", [TruthAgainstWorst(), ThresholdGap(0.9, 0.01, 5.0)])
def test_the_truth_is_one_of_the_candidates(rule: Any, tmp_path: Path) -> None:
    judge = RegexJudge({"ash|bay|cut|dew|elm|fog|gum|hay|ice|jam": 0.2}, each=True)
    truths = {r["prompt"]: r["chosen"] for r in reversed([json.loads(s) for s in source(tmp_path)])}
    fitted(tmp_path, PreferenceRounds(judge, rule, truth=True, sampling=SHORT | {"temperature": 3.0}), epochs=1)
    assert lines(tmp_path, 0)
    assert all(r["chosen"] == truths[r["prompt"]] for r in lines(tmp_path, 0))


def source(folder: Path) -> list[str]:
    data(folder)
    return (folder / "train.jsonl").read_text().splitlines()


@pytest.mark.parametrize("threshold", [9.0, 0.0])
def test_a_round_without_pairs_ends_training_with_the_reason(
    threshold: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fading(LengthJudge):
        """Tells samples apart in the first round only."""

        calls = 0

        def score(self, conditions: Sequence[str], samples: Sequence[str]) -> torch.Tensor:
            Fading.calls += 1
            return super().score(conditions, samples) * (Fading.calls < 2) * (threshold == 0)

    Fading.calls = 0
    watch = Watch()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run = fitted(tmp_path, PreferenceRounds(Fading(3), ThresholdGap(threshold, 0.0, 0.1), sampling=SHORT), watch)
    trained = int(threshold == 0)
    assert f"round {trained} gave no usable pair: ThresholdGap(threshold={threshold}" in caplog.text
    assert "on scores between 0 and 0" in caplog.text
    assert run.state.finished
    assert run.global_step == (len(lines(tmp_path, 0)) // 4 if trained else 0)
    assert not (tmp_path / f"rounds/round-{trained:03d}/pairs.jsonl").exists()


def test_fewer_pairs_than_a_step_takes_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run = fitted(tmp_path, PreferenceRounds(LengthJudge(3), prompts=3, sampling=SHORT))
    assert "round 0 gave 2 pairs and 0 replayed, too few to train on" in caplog.text
    assert run.global_step == 0
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fitted(tmp_path, PreferenceRounds(LengthJudge(3), min_pairs=100, sampling=SHORT))
    assert "round 0 gave 8 pairs and 0 replayed, too few to train on" in caplog.text


def test_blank_samples_have_no_score(tmp_path: Path) -> None:
    class Strict(Judge):
        """Refuses what cannot be trained on."""

        def score(self, conditions: Sequence[str], samples: Sequence[str]) -> torch.Tensor:
            assert all(s.strip() for s in samples)
            return torch.arange(len(samples))

    rounds = PreferenceRounds(Strict(), candidates=12, sampling={"max_new_tokens": 1}, piece=2)
    fitted(tmp_path, rounds, epochs=1)
    rows = [r for p in (tmp_path / "rounds").rglob("piece-*") for r in json.loads(p.read_text())["rows"]]
    scored = [(s, v) for r in rows for s, v in zip(r["samples"], r["scores"], strict=True)]
    assert {s.strip() == "" for s, _ in scored} == {True, False}
    assert all((v is None) == (not s.strip()) for s, v in scored)


def test_two_equal_samples_are_no_pair() -> None:
    rows: list[SampledRow] = [{"condition": "q", "samples": ["a", "b", "a"], "scores": [1.0, 0.0, 2.0]}]
    made = pair_rows(rows, torch.tensor([[0, 2, 0], [0, 2, 1]]), number=3)
    assert made == [
        {"condition": "q", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 0.0, "round": 3}
    ]


class Bandit(Foreign):
    """Somebody's own module: the policy is a point, a sample is a point near it."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(2, 1, bias=False)
        self.reference: Any = torch.nn.Linear(2, 1, bias=False).requires_grad_(False)
        self.reference.load_state_dict(self.policy.state_dict())

    def sample(self, conditions: Sequence[str], count: int, seed: int) -> torch.Tensor:
        noise = torch.randn(len(conditions), count, 2, generator=torch.Generator().manual_seed(seed))
        return self.policy.weight.detach() + noise

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        chosen, rejected = batch
        near = [-(p.weight - x).square().sum(-1) / 2 for p in (self.policy, self.reference) for x in (chosen, rejected)]
        return torch.nn.functional.softplus(-(near[0] - near[1] - near[2] + near[3])).mean()


class Points(pl.LightningDataModule):
    """Its samples are points; files hold their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.files: Any = None

    def conditions(self, split: str) -> list[str]:
        return [f"{i}" for i in range(8)]

    def write_samples(self, root: Path, name: str, samples: Sequence[torch.Tensor]) -> list[str]:
        return [json.dumps(s.tolist()) for s in samples]

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        path = root / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    def provide_train(self, files: Any) -> None:
        self.files = files

    def train_dataloader(self) -> Any:
        rows = [json.loads(line) for line in Path(self.files()).read_text().splitlines()]
        pairs = [torch.tensor([json.loads(r[side]) for r in rows]) for side in ("chosen", "rejected")]
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*pairs), batch_size=4)


class Near(Judge):
    """Closeness to (5, -5)."""

    def score(self, conditions: Sequence[str], samples: Sequence[torch.Tensor]) -> torch.Tensor:
        return -(torch.stack(list(samples)) - torch.tensor([5.0, -5.0])).norm(dim=-1)


def test_rounds_move_a_foreign_policy_to_where_the_judge_is_pleased(tmp_path: Path) -> None:
    module = Bandit()
    start = float(Near().score([], [module.policy.weight[0].detach()]))
    run = trainer(tmp_path, PreferenceRounds(Near(), BestWorst()), max_epochs=15)
    run.fit(module, datamodule=Points())
    end = float(Near().score([], [module.policy.weight[0].detach()]))
    assert start < -6
    assert end > -2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    judge = LengthJudge(3)
    run = trainer(tmp_path, PreferenceRounds(judge), max_epochs=1)
    with pytest.raises(TypeError, match=r"PreferenceRounds requires Foreign\.sample\(.*, which is not"):
        run.fit(Foreign(), datamodule=data(tmp_path))
    run = trainer(tmp_path, PreferenceRounds(judge), max_epochs=1)
    with pytest.raises(
        TypeError,
        match=r"requires LightningDataModule\.write_samples\(.*\.conditions\(split\)",
    ):
        run.fit(Bandit(), datamodule=pl.LightningDataModule())
    with pytest.raises(TypeError, match=r"requires Points\.truths\(conditions\)"):
        trainer(tmp_path, PreferenceRounds(judge, truth=True), max_epochs=1).fit(Bandit(), datamodule=Points())
    module = TextPreferenceModule(tiny_lm(lora=True), reference=AdapterOff())
    with pytest.raises(ValueError, match="AdapterCopy"):
        trainer(tmp_path, PreferenceRounds(judge), max_epochs=1).fit(module, datamodule=data(tmp_path))
    cached = TextPreferenceModule(tiny_lm(), reference=CachedReference(str(tmp_path / "c"), FrozenCopy()))
    with pytest.raises(ValueError, match="new rows, for which no reference values are cached"):
        trainer(tmp_path, PreferenceRounds(judge), max_epochs=1).fit(cached, datamodule=data(tmp_path))


def test_adapters_need_a_copy_that_can_move(tmp_path: Path) -> None:
    module = TextPreferenceModule(tiny_lm(lora=True), reference=AdapterCopy())
    rounds = PreferenceRounds(LengthJudge(3), sampling=SHORT)
    trainer(tmp_path, rounds, max_epochs=2).fit(module, datamodule=data(tmp_path))
    assert rounds.round == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer >= 1 or None, got 0"),
        ({"epochs_per_round": 0}, "epochs_per_round"),
        ({"candidates": 0}, "candidates must be an integer >= 1, got 0"),
        ({"candidates": 1}, r"candidates \+ truth must be an integer >= 2, got 1"),
        ({"prompts": 0}, "prompts"),
        ({"piece": 0}, "piece"),
        ({"min_pairs": 0}, "min_pairs"),
        ({"replay": 1.5}, "replay"),
        ({"replay": [0.3, -0.1]}, "replay"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferenceRounds(LengthJudge(3), **options)
