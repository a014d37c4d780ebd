"""Rounds of sampling, judging and training on the resulting pairs: iterative DPO, and DNO as a setting of it."""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import HasRounds, HasTruths
from pl_prefopt.callbacks.support.round_cycle import RoundCycle
from pl_prefopt.judges import Judge, judged
from pl_prefopt.rounds import BestWorst, PairRule
from pl_prefopt.rounds.files import (
    PairRow,
    RoundFiles,
    SampledRow,
    is_usable,
    pair_rows,
    round_name,
    score_range,
    score_table,
)
from pl_prefopt.utilities.checks import integer, within
from pl_prefopt.utilities.configurable import to_config
from pl_prefopt.utilities.digests import json_digest, weights_key
from pl_prefopt.utilities.files import write_json
from pl_prefopt.utilities.seeding import derive_seed, keyed_generator


class PreferenceRounds(RoundCycle[HasRounds]):
    """Before every round: sample K candidates per prompt, judge them, pair them; then train on the pairs.

    A round lasts `epochs_per_round` epochs. From the second one on, the reference first becomes the last iterate, and
    pairs of earlier rounds are replayed. DNO-Prct (Rosset et al. 2024, 2404.03715) is the rule `ThresholdGap` with
    `candidates: 5`, `truth: true` and `replay: [0.3, 0.15]`. A round without a usable pair ends training.

    Sampling is keyed by (seed, round, piece) and written piece by piece: a resumed run reads what a killed one had
    finished, and ends with the same bits as an uninterrupted one. Folder `round-<n>` holds the pieces, `pairs.jsonl`
    (the training file, pairs of this round first) and `round.json` (the pairs of this round and the number of replayed
    ones). Processes share the pieces, so all of them must see the folder. Sets `reload_dataloaders_every_n_epochs` of
    the Trainer to 1.

    Args:
        judge: scores the candidates.
        rule: which candidates become pairs.
        rounds: number of rounds, after which training ends; None: as long as the Trainer trains.
        epochs_per_round: epochs on the pairs of a round, >= 1.
        candidates: samples per prompt, K >= 1; K + truth >= 2.
        truth: judge the ground truth of each prompt as the last candidate.
        prompts: prompts of a round, successive parts of one random order; None: all of them in every round.
        replay: share in [0, 1] of the pairs of the previous round that are trained on again; a list also for rounds
            further back.
        sync_reference: make the last iterate the reference.
        sampling: options of the module's `sample`, e.g. {"temperature": 0.7, "top_p": 0.95}.
        piece: prompts that are sampled, judged and written at once, >= 1.
        min_pairs: fewest pairs of a round, >= 1; with fewer, training ends. None: those of one optimizer step, by the
            `batch_size` of the datamodule.
        seed: key of prompts, samples and replay.
        path: folder of the rounds; None: `rounds` in the run folder, which a resumed run continues.

    Raises:
        ValueError: an argument out of range; in `setup`, a reference that cannot move or is cached; on resume, a
            training file that is missing or has changed.
        TypeError: in `setup`, a module or datamodule without the required members.
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
        super().__init__(
            data=HasTruths if truth else HasRounds,
            rounds=rounds,
            epochs_per_round=epochs_per_round,
            sync_reference=sync_reference,
            sampling=sampling,
            piece=piece,
            seed=seed,
            path=path,
        )
        integer("candidates", candidates)
        integer("candidates + truth", candidates + truth, least=2)
        integer("prompts", prompts, optional=True)
        integer("min_pairs", min_pairs, optional=True)
        self.replay = list(replay) if isinstance(replay, (list, tuple)) else [replay]
        for share in self.replay:
            within("replay", share, 0, 1)
        self.judge, self.rule, self.candidates, self.truth = judge, rule, candidates, truth
        self.prompts, self.min_pairs = prompts, min_pairs

    def prepare_round(self, number: int) -> bool:
        """Move the reference, sample, judge and pair; write the pairs with the replayed ones."""
        trainer = self.trainer
        if number and self.sync_reference:
            self.move_reference()
        rows = self._judged_samples(number)
        scores = score_table(rows)
        pairs = pair_rows(rows, self.rule.pairs(scores, self.candidates if self.truth else None), number)
        replayed = [row for back, share in enumerate(self.replay, 1) for row in self._replayed(number, back, share)]
        step = trainer.world_size * trainer.accumulate_grad_batches * getattr(self.data, "batch_size", 1)
        if not pairs or len(pairs) + len(replayed) < (self.min_pairs or step):
            counts = f"{len(pairs)} pairs and {len(replayed)} replayed, too few to train on"
            self.stop(
                f"round {number} gave {counts if pairs else 'no usable pair'}: {self.rule!r} on scores "
                f"{score_range(scores)}"
            )
            return False
        if trainer.is_global_zero:
            write_json(self.folder(number) / "round.json", {"replayed": len(replayed), "pairs": pairs})
        self.write_pairs(number, [*pairs, *replayed])
        self._report(number, scores, len(pairs))
        return True

    def _judged_samples(self, number: int) -> list[SampledRow]:
        """Prompts of the round with their samples and scores."""
        settings = [self.candidates, self.truth, self.prompts, self.sampling, self.piece, self.seed, number]
        key = json_digest([weights_key(self.module.policy), to_config(self.judge), settings])
        conditions = self.data.conditions("train")
        total = len(conditions)
        if self.prompts is not None and self.prompts < total:
            order = torch.randperm(total, generator=keyed_generator(self.seed, "prompts")).tolist()
            conditions = [conditions[order[(number * self.prompts + i) % total]] for i in range(self.prompts)]
        return self.sample_pieces(number, key, conditions, self._judged_piece)

    def _judged_piece(self, files: RoundFiles, index: int) -> list[SampledRow]:
        """Sample and judge the prompts of a piece; whitespace is not judged and has no score."""
        conditions = files.piece(index)
        seed = derive_seed(self.seed, "round", files.number, index)
        candidates = [list(row) for row in self.sample(conditions, self.candidates, seed)]
        if self.truth:
            truths = cast(HasTruths, self.data).truths(conditions)
            candidates = [[*row, truth] for row, truth in zip(candidates, truths, strict=True)]
        usable = [(n, k) for n, row in enumerate(candidates) for k, sample in enumerate(row) if is_usable(sample)]
        torch.manual_seed(derive_seed(seed, "judge"))  # judges may sample too; a resumed run must judge alike
        scores = judged(self.judge, [conditions[n] for n, _ in usable], [candidates[n][k] for n, k in usable])
        score_of = dict(zip(usable, scores.tolist(), strict=True))
        rows: list[SampledRow] = []
        for n, (condition, row) in enumerate(zip(conditions, candidates, strict=True)):
            names = self.write_samples(f"{round_name(files.number)}/samples/{index:05d}-{n}", row)
            scored = [score_of.get((n, k)) for k in range(len(row))]
            rows.append({"condition": condition, "samples": names, "scores": scored})
        return rows

    def _replayed(self, number: int, back: int, share: float) -> list[PairRow]:
        """A random share of the pairs that the round `back` rounds ago made itself."""
        if number < back or not share:
            return []
        past = number - back
        rows = json.loads((self.folder(past) / "round.json").read_text(encoding="utf-8"))["pairs"]
        order = torch.randperm(len(rows), generator=keyed_generator(self.seed, "replay", number, past))
        return [rows[i] for i in order[: int(share * len(rows))].tolist()]

    def _report(self, number: int, scores: Tensor, pairs: int) -> None:
        samples = scores[:, : self.candidates]
        best = samples.nan_to_num(-torch.inf).amax(1)
        mean, mean_best = float(samples.nanmean()), float(best[best.isfinite()].mean())
        self.log_metrics({"score": mean, "best": mean_best, "pairs": float(pairs)})
        rank_zero_info(
            f"round {number}: {pairs} pairs from {len(scores)} prompts; mean score {mean:.4g}, of the best of each "
            f"prompt {mean_best:.4g}"
        )
