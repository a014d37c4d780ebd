"""Rounds of sampling, judging and training on the pairs that come of it: iterative DPO, and DNO as a setting of it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from pl_prefopt.callbacks.ches_filter import weights_key
from pl_prefopt.callbacks.reference_sync import ReferenceSync
from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import evaluating, run_folder
from pl_prefopt.judges import Judge, judged
from pl_prefopt.rounds import BestWorst, PairRule
from pl_prefopt.rounds.files import (
    RoundFiles,
    Row,
    digest,
    is_usable,
    pair_rows,
    progress,
    round_name,
    score_table,
    span,
    write_json,
)
from pl_prefopt.utilities.configurable import to_config
from pl_prefopt.utilities.seeding import derive_seed, keyed_generator


class PreferenceRounds(pl.Callback):
    """Before every round: sample K candidates per prompt, judge them, pair them; then train on the pairs.

    A round lasts `epochs_per_round` epochs. From the second one on, the reference first becomes the last iterate, and
    pairs of earlier rounds are replayed. DNO-Prct (Rosset et al. 2024, 2404.03715) is the rule `ThresholdGap` with
    `candidates: 5`, `truth: true` and `replay: [0.3, 0.15]`. A round without a usable pair ends training.

    Sampling is keyed by (seed, round, piece) and kept piece by piece: what a killed run had finished is not made again,
    and a resumed run is the same to the last bit. Folder `round-<n>` holds the pieces, `pairs.jsonl` (what is trained
    on, own pairs first) and `round.json` (numbers and own pairs). Processes share the pieces, so all of them must see
    the folder. Sets `reload_dataloaders_every_n_epochs` of the Trainer to 1.

    Args:
        judge: gives the scores.
        rule: which candidates become pairs.
        rounds: number of rounds, after which training ends; None goes on as long as the Trainer does.
        epochs_per_round: epochs on the pairs of a round, >= 1.
        candidates: samples per prompt, K >= 1; K + truth >= 2.
        truth: judge the ground truth of each prompt as the last candidate.
        prompts: prompts of a round, successive parts of one random order; None takes all of them in every round.
        replay: share in [0, 1] of the pairs of the round before that are trained on again; a list also for rounds
            further back.
        sync_reference: make the last iterate the reference.
        sampling: options of the module's `sample`, e.g. {"temperature": 0.7, "top_p": 0.95}.
        piece: prompts that are sampled, judged and kept at once, >= 1.
        min_pairs: pairs of a round at least, >= 1; with fewer, training ends. None: those of one optimizer step.
        seed: key of prompts, samples and replay.
        path: folder of the rounds; None: `rounds` in the run folder, which a resumed run continues.

    Raises:
        ValueError: an argument out of range; in `setup`, a reference that cannot move, cached reference values, or
            a module or datamodule without the members asked for (TypeError); on resume, pairs that have changed.
    """

    def __init__(
        self,
        judge: Judge,
        rule: PairRule = BestWorst(),  # noqa: B008
        rounds: int | None = None,
        epochs_per_round: int = 1,
        candidates: int = 4,
        truth: bool = False,
        prompts: int | None = None,
        replay: float | list[float] = 0.0,
        sync_reference: bool = True,
        sampling: dict[str, Any] | None = None,
        piece: int = 16,
        min_pairs: int | None = None,
        seed: int = 0,
        path: str | None = None,
    ) -> None:
        counts = {"rounds": rounds, "epochs_per_round": epochs_per_round, "prompts": prompts, "piece": piece}
        counts |= {"min_pairs": min_pairs}
        for name, value in {**counts, "candidates": candidates, "candidates + truth": candidates + truth - 1}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= {1 + ('+' in name)}, got {value + ('+' in name)}")
        self.replay = list(replay) if isinstance(replay, (list, tuple)) else [replay]
        if not all(0 <= share <= 1 for share in self.replay):
            raise ValueError(f"replay must lie in [0, 1], got {replay}")
        self.judge, self.rule, self.rounds, self.epochs_per_round = judge, rule, rounds, epochs_per_round
        self.candidates, self.truth, self.prompts, self.sync_reference = candidates, truth, prompts, sync_reference
        self.sampling, self.piece, self.min_pairs = sampling or {}, piece, min_pairs
        self.seed, self.path = seed, path
        self.round = -1
        self._root: str | None = path
        self._digest: str | None = None
        self._mover = ReferenceSync(every_n_steps=1, alpha=1.0)
        self._trainer: Any = None

    # ---- life cycle ------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check module, datamodule and reference; be asked whenever a training loader is made."""
        if stage != "fit":
            return
        pl_module.configure_model()
        data: Any = getattr(trainer, "datamodule", None)
        if data is None:
            raise ValueError("PreferenceRounds needs a datamodule, e.g. TextPreferenceDataModule; found loaders only")
        require(pl_module, self, "policy", "sample")
        truths = ("truths",) if self.truth else ()
        require(data, self, "conditions", "write_samples", "write_pairs", "provide_train", *truths)
        if self.sync_reference:
            self._mover.setup(trainer, pl_module, stage)
        if getattr(pl_module, "cache", None) is not None:
            raise ValueError(
                "PreferenceRounds trains on new rows, for which no reference values are cached; use reference: "
                "FrozenCopy for full fine-tuning or reference: AdapterCopy with adapters"
            )
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        self._trainer = trainer
        data.provide_train(self._training_file)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be asked no more."""
        if self._trainer is not None:
            self._trainer.datamodule.provide_train(None)
            self._trainer = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let training end with the last epoch of the last round."""
        if self.rounds is not None and trainer.current_epoch + 1 >= self.rounds * self.epochs_per_round:
            self._stop(f"all {self.rounds} rounds are done")

    def state_dict(self) -> dict[str, Any]:
        """Round, its folder, and a key of its pairs."""
        return {"round": self.round, "root": self._root, "digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the round of the checkpoint with the very same pairs."""
        self.round, self._digest = state_dict["round"], state_dict["digest"]
        self._root = self.path or state_dict["root"]
        if self.round < 0:
            return
        file = self._pairs_file()
        if not file.is_file() or digest(file) != self._digest:
            raise ValueError(
                f"{file} {'has changed' if file.is_file() else 'is missing'}, but the checkpoint lies in round "
                f"{self.round}, which trains on it; put it back, or give the folder of the rounds as path"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the reference of the round."""
        if self.sync_reference:
            self._mover.on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the reference of the round back."""
        if self.sync_reference:
            self._mover.on_load_checkpoint(trainer, pl_module, checkpoint)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _training_file(self) -> str | None:
        """The pairs of the round that the coming epoch belongs to, made now if they are not there."""
        if self._trainer.current_epoch // self.epochs_per_round > self.round:
            if self.rounds is not None and self.round + 1 >= self.rounds:
                self._stop(f"all {self.rounds} rounds are done")
            else:
                close_epoch(self._trainer)
                self._prepare(self._trainer, self._trainer.lightning_module, self._trainer.datamodule)
        return str(self._pairs_file()) if self.round >= 0 else None

    def _prepare(self, trainer: pl.Trainer, module: Any, data: Any) -> None:
        number = self.round + 1
        if self._root is None:
            self._root = str(run_folder(trainer, None, "rounds"))
        if number and self.sync_reference:
            self._mover.move(module)
        rows = self._sampled(trainer, module, data, number)
        scores = score_table(rows)
        own = pair_rows(rows, self.rule.pairs(scores, self.candidates if self.truth else None), number)
        replayed = [row for back, share in enumerate(self.replay, 1) for row in self._replayed(number, back, share)]
        least = self.min_pairs or trainer.world_size * trainer.accumulate_grad_batches * getattr(data, "batch_size", 1)
        if not own or len(own) + len(replayed) < least:
            found = f"{len(own)} pairs and {len(replayed)} replayed, too few to train on" if own else "no usable pair"
            self._stop(f"round {number} gave {found}: {self.rule!r} on scores {span(scores)}")
            return
        if trainer.is_global_zero:
            data.write_pairs(Path(self._root), f"{round_name(number)}/pairs", [*own, *replayed])
            write_json(Path(self._root) / round_name(number) / "round.json", {"replayed": len(replayed), "pairs": own})
        trainer.strategy.barrier("rounds: pairs")
        self.round = number
        self._digest = digest(self._pairs_file())
        self._report(trainer, scores, own)

    def _sampled(self, trainer: pl.Trainer, module: Any, data: Any, number: int) -> list[Row]:
        """Prompts of the round with samples and scores; this rank makes its share of the missing pieces.

        A policy that is sharded over ranks needs all of them for every sample, so all make the same ones.
        """
        conditions = self._prompts(data.conditions("train"), number)
        files = RoundFiles(Path(str(self._root)), number, self._key(module, number), conditions, self.piece)
        sharded = getattr(module, "device_mesh", None) is not None
        todo = files.missing() if sharded else files.missing(trainer.global_rank, trainer.world_size)
        with evaluating(module), torch.no_grad():
            for index in progress(todo, files.pieces, f"round {number}: samples", hidden=not trainer.is_global_zero):
                self._make_piece(files, index, module, data)
        trainer.strategy.barrier("rounds: samples")
        return files.rows()

    def _make_piece(self, files: RoundFiles, index: int, module: Any, data: Any) -> None:
        """Sample and judge the prompts of a piece, and keep what came of it."""
        conditions = files.pieces[index]
        seed = derive_seed(self.seed, "round", files.number, index)
        with self._trainer.precision_plugin.forward_context():
            drawn = module.sample(conditions, self.candidates, seed, **self.sampling)
        candidates = [list(row) for row in drawn]
        if self.truth:
            candidates = [[*row, t] for row, t in zip(candidates, data.truths(conditions), strict=True)]
        usable = [(n, k) for n, row in enumerate(candidates) for k, s in enumerate(row) if is_usable(s)]
        torch.manual_seed(derive_seed(seed, "judge"))
        scores = judged(self.judge, [conditions[n] for n, _ in usable], [candidates[n][k] for n, k in usable])
        given = dict(zip(usable, scores.tolist(), strict=True))
        kept = [
            data.write_samples(files.root, f"{round_name(files.number)}/samples/{index:05d}-{n}", row)
            for n, row in enumerate(candidates)
        ]
        files.write(
            index,
            [
                {"condition": c, "samples": names, "scores": [given.get((n, k)) for k in range(len(names))]}
                for n, (c, names) in enumerate(zip(conditions, kept, strict=True))
            ],
        )

    def _replayed(self, number: int, back: int, share: float) -> list[Row]:
        """A share of the own pairs of an earlier round."""
        if number < back or not share:
            return []
        past = number - back
        rows = json.loads((Path(str(self._root)) / round_name(past) / "round.json").read_text(encoding="utf-8"))[
            "pairs"
        ]
        order = torch.randperm(len(rows), generator=keyed_generator(self.seed, "replay", number, past))
        return [rows[i] for i in order[: int(share * len(rows))].tolist()]

    def _prompts(self, conditions: list[str], number: int) -> list[str]:
        """The prompts of a round."""
        total = len(conditions)
        if self.prompts is None or self.prompts >= total:
            return conditions
        order = torch.randperm(total, generator=keyed_generator(self.seed, "prompts")).tolist()
        return [conditions[order[(number * self.prompts + i) % total]] for i in range(self.prompts)]

    def _key(self, module: Any, number: int) -> str:
        settings = [self.candidates, self.truth, self.prompts, self.sampling, self.piece, self.seed, number]
        body = json.dumps([weights_key(module), to_config(self.judge), settings], sort_keys=True, default=str)
        return hashlib.sha256(body.encode()).hexdigest()

    def _pairs_file(self) -> Path:
        return Path(str(self._root)) / round_name(self.round) / "pairs.jsonl"

    def _report(self, trainer: pl.Trainer, scores: torch.Tensor, own: list[Row]) -> None:
        samples = scores[:, : self.candidates]
        best = samples.nan_to_num(-torch.inf).amax(1)
        values = {"score": samples.nanmean(), "best": best[best.isfinite()].mean(), "pairs": float(len(own))}
        for logger in trainer.loggers:
            logger.log_metrics({f"rounds/{k}": float(v) for k, v in values.items()}, step=trainer.global_step)
        rank_zero_info(
            f"round {self.round}: {len(own)} pairs from {len(scores)} prompts; mean score {values['score']:.4g}, of "
            f"the best of each prompt {values['best']:.4g}"
        )

    def _stop(self, reason: str) -> None:
        rank_zero_info(f"training ends: {reason}")
        self._trainer.should_stop = True


def close_epoch(trainer: pl.Trainer) -> None:
    """After a resume at the last batch of an epoch: let Lightning start the next one at its first batch.

    It compares the batches that are done with the length of the next epoch, and goes on in the middle of a longer one.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting and loop.batch_progress.is_last_batch:
        loop.batch_progress.current.completed = sys.maxsize
