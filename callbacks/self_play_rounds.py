"""Rounds of real samples against the policy's own; each round's best weights by FID become the next reference."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, TypedDict

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.protocols import Batch, HasImages
from pl_prefopt.callbacks.support.round_cycle import RoundCycle
from pl_prefopt.rounds.files import RoundFiles, SampledRow, round_name
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.digests import weights_key
from pl_prefopt.utilities.files import write_json
from pl_prefopt.utilities.seeding import derive_seed, keyed_generator
from pl_prefopt.utilities.sharding import fill, whole

REAL = "real"
FID_BATCH = 64
"""Images whose features are computed at once."""


class Measurement(TypedDict):
    """FID after an optimizer step of a round; round -1 is before the first one."""

    step: int
    round: int
    fid: float


class Best(Measurement):
    """The measurement of the lowest FID, with the trainable parameters of the policy at that step."""

    weights: dict[str, Tensor]


class SelfPlayRounds(RoundCycle[HasImages]):
    """Train on (real, own sample of the same caption), measure FID meanwhile, promote the best weights.

    A round: the policy, equal to the reference, draws one sample per real image; training on these pairs lasts
    `epochs_per_round` epochs; FID to held-out images is measured every few steps; then the weights of the lowest FID
    become policy and reference, and the optimizer state is cleared. A round that does not lower FID ends training. The
    run ends with the best weights. With the objective `DDO` this is Zheng et al. 2025 (2503.01103, section 4); with
    `DPO` and one round it is the second stage of LightGen (2503.08619), whose own selection is unpublished.

    FID depends on the number of images: compare only numbers of one run. The chosen image of a training row is the
    real one; the rejected image of the row is not used. Sets `reload_dataloaders_every_n_epochs` of the Trainer to 1.

    Args:
        features: (N, 3, H, W) in [0, 1] -> (N, F), in YAML by class; a number asks for Inception features of that size
            (needs torch-fidelity and its weights).
        rounds: >= 1.
        epochs_per_round: >= 1.
        rows: real images that are used, drawn once by the seed; None: all.
        every_n_steps: optimizer steps between two measurements of FID, >= 1.
        samples: images on either side of FID, >= 2; at most as many as `split` has.
        split: held-out images.
        sampling: options of the module's `sample`, e.g. {"steps": 20, "guidance": 1.0}.
        piece: captions that are sampled and written at once, >= 1.
        seed: key of rows and samples.
        path: folder of the rounds; None: `rounds` in the run folder, which a resumed run continues.

    Raises:
        ValueError: an argument out of range; in `setup`, a reference that cannot move or is cached; on resume, a
            training file that is missing or has changed.
        TypeError: in `setup`, a module or datamodule without the required members.
    """

    rounds: int

    def __init__(
        self,
        features: nn.Module | int = 2048,
        rounds: int = 1,
        epochs_per_round: int = 1,
        rows: int | None = None,
        every_n_steps: int = 50,
        samples: int = 2048,
        split: str = "val",
        sampling: dict[str, Any] | None = None,
        piece: int = 16,
        seed: int = 0,
        path: str | None = None,
    ) -> None:
        integer("rounds", rounds)
        super().__init__(
            data=HasImages,
            rounds=rounds,
            epochs_per_round=epochs_per_round,
            sync_reference=True,
            sampling=sampling,
            piece=piece,
            seed=seed,
            path=path,
        )
        integer("rows", rows, optional=True)
        integer("every_n_steps", every_n_steps)
        integer("samples", samples, least=2)
        self.features, self.rows, self.every_n_steps, self.samples, self.split = (
            features, rows, every_n_steps, samples, split,
        )  # fmt: skip
        self.history: list[Measurement] = []
        self.best: Best | None = None
        self._metric: Metric | None = None

    # ---- rounds ----------------------------------------------------------------------------------------------------

    def prepare_round(self, number: int) -> bool:
        """Promote the best weights, sample for the captions of the real images, and write the pairs."""
        if number == 0:
            self._measure()
        else:
            self._restore_best()
            self.move_reference()
            for optimizer in self.trainer.optimizers:
                # The moments belong to the weights that were just discarded.
                optimizer.state.clear()
        reals = self._real_images(number)

        def make(files: RoundFiles, index: int) -> list[SampledRow]:
            captions = files.piece(index)
            count = max(len(reals[caption]) for caption in captions)
            drawn = self.sample(captions, count, derive_seed(self.seed, "round", number, index))
            folder = f"{round_name(number)}/samples/{index:05d}"
            return [
                {
                    "condition": caption,
                    "samples": self.write_samples(f"{folder}-{n}", list(drawn[n][: len(reals[caption])])),
                }
                for n, caption in enumerate(captions)
            ]

        key = f"{weights_key(self.module.policy)} {self.sampling} {self.seed} {self.piece} {len(reals)}"
        rows = self.sample_pieces(number, key, list(reals), make)
        self.write_pairs(
            number,
            [
                {"condition": row["condition"], "chosen": real, "rejected": sample}
                for row in rows
                for real, sample in zip(reals[row["condition"]], row["samples"], strict=True)
            ],
        )
        return True

    def _real_images(self, number: int) -> dict[str, list[str]]:
        """Caption -> names of its real images, which are written before the first round."""
        file, rows = self.root / "real.json", self.data.datasets["train"]
        if number == 0 and self.trainer.is_global_zero:
            order = torch.randperm(len(rows), generator=keyed_generator(self.seed, REAL)).tolist()
            names: dict[str, list[str]] = defaultdict(list)
            for i in sorted(order[: self.rows]):
                names[rows.captions[i]] += self.write_samples(f"{REAL}/{i:07d}", [self.data.images("train", i)[0]])
            write_json(file, names)
        self.trainer.strategy.barrier("rounds: real images")
        return json.loads(file.read_text(encoding="utf-8"))

    @torch.no_grad()
    def _restore_best(self) -> None:
        assert self.best is not None
        for name, parameter in self.module.policy.named_parameters():
            if name in self.best["weights"]:
                fill(parameter, self.best["weights"][name])

    # ---- hooks -----------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Measure FID every few optimizer steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._measure()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure at the end of a round; end training with the last round or one that did not lower FID."""
        if (trainer.current_epoch + 1) % self.epochs_per_round:
            return
        self._measure()
        assert self.best is not None
        if self.best["round"] < self.round:
            self.stop(f"round {self.round} did not lower FID below {self.best['fid']:.4g}")
        else:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights, and write all measurements."""
        if self.best is None:
            return
        self._restore_best()
        if trainer.is_global_zero:
            write_json(self.root / "fid.json", self.history)
            first, best = self.history[0]["fid"], self.best
            rank_zero_info(f"FID {first:.4g} before training, {best['fid']:.4g} at step {best['step']}, which is kept")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the rounds, all measurements and the best weights so far."""
        return {**super().state_dict(), "history": self.history, "best": self.best or {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the round of the checkpoint."""
        super().load_state_dict(state_dict)
        self.history, self.best = state_dict["history"], state_dict["best"] or None

    # ---- FID -------------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Append FID at the present step to the history, and copy the weights if it is the lowest so far."""
        trainer, step = self.trainer, self.trainer.global_step
        if self.history and self.history[-1]["step"] == step:
            return
        with evaluating(trainer.lightning_module), torch.no_grad():
            fid = self._fid(trainer.lightning_module.device)
        self.history.append({"step": step, "round": self.round, "fid": fid})
        self.log_metrics({"fid": fid})
        rank_zero_info(f"step {step}: FID {fid:.4g}")
        if self.best is None or fid < self.best["fid"]:
            trained = ((name, p) for name, p in self.module.policy.named_parameters() if p.requires_grad)
            weights = {name: whole(p.detach()).cpu().clone() for name, p in trained}
            self.best = {"fid": fid, "step": step, "round": self.round, "weights": weights}

    def _fid(self, device: torch.device) -> float:
        """FID between held-out images and samples of their captions; every rank takes its share of both."""
        rank, rows = self.trainer.global_rank, self.data.datasets[self.split]
        share = range(rank, min(self.samples, len(rows)), self.trainer.world_size)
        if self._metric is None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            features = self.features if isinstance(self.features, int) else self.features.eval()
            # The features of the real images are computed once: `reset` keeps them.
            self._metric = FrechetInceptionDistance(features, reset_real_features=False, normalize=True).to(device)
            for start in range(0, len(share), FID_BATCH):
                images = [self.data.images(self.split, i)[0] for i in share[start : start + FID_BATCH]]
                self._metric.update(torch.stack(images).to(device), real=True)
        self._metric.reset()
        drawn = self.sample([rows.captions[i] for i in share], 1, derive_seed(self.seed, "fid", rank))
        for images in torch.stack([row[0] for row in drawn]).float().split(FID_BATCH):
            self._metric.update(images.to(device), real=False)
        return float(self._metric.compute())
