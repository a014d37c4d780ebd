"""Rounds of real samples against the policy's own; each round's best weights by FID become the next reference."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from pl_prefopt.callbacks.ches_filter import weights_key
from pl_prefopt.callbacks.reference_sync import ReferenceSync
from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import run_folder
from pl_prefopt.rounds.files import RoundFiles, progress, round_name, write_json
from pl_prefopt.utilities.seeding import derive_seed, keyed_generator

REAL = "real"


class SelfPlayRounds(pl.Callback):
    """Train on (real, own sample of the same caption), measure FID on the way, promote the best weights.

    A round: the policy, equal to the reference, makes one sample per real picture; training on these pairs lasts
    `epochs_per_round` epochs; FID to held-out pictures is taken every few steps; then the weights of the least FID
    become policy and reference, and the optimizer starts anew. A round that does not lower FID ends training. The run
    ends with the best weights. With the objective `DDO` this is Zheng et al. 2025 (2503.01103, section 4); with `DPO`
    and one round it is the second stage of LightGen (2503.08619), whose own selection is unpublished.

    FID depends on the number of pictures: compare only numbers of one run. The chosen picture of a training row is the
    real one; what was rejected there is not used. Sets `reload_dataloaders_every_n_epochs` of the Trainer to 1.

    Args:
        features: (N, 3, H, W) in [0, 1] -> (N, F) in YAML by class; a number asks for Inception features of that size
            (needs torch-fidelity and its weights).
        rounds: >= 1.
        epochs_per_round: >= 1.
        rows: real pictures that are used, drawn once by the seed; None takes all.
        every_n_steps: optimizer steps between two measurements of FID, >= 1.
        samples: pictures on either side of FID, >= 2; of `split` there may be fewer.
        split: held-out pictures.
        sampling: options of the module's `sample`, e.g. {"steps": 20, "guidance": 1.0}.
        piece: captions that are sampled and kept at once, >= 1.
        seed: key of rows and samples.
        path: folder of the rounds; None: `rounds` in the run folder.

    Raises:
        ValueError: an argument out of range; in `setup`, a reference that cannot move.
        TypeError: in `setup`, a module or datamodule without the members asked for.
    """

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
        least = {"rounds": rounds, "epochs_per_round": epochs_per_round, "every_n_steps": every_n_steps}
        for name, value in {**least, "piece": piece, "rows": rows, "samples - 1": samples - 1}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.features, self.rounds, self.epochs_per_round, self.rows = features, rounds, epochs_per_round, rows
        self.every_n_steps, self.samples, self.split, self.piece = every_n_steps, samples, split, piece
        self.sampling, self.seed, self.path = sampling or {}, seed, path
        self.round, self.history, self.best = -1, [], {}
        self._mover = ReferenceSync(every_n_steps=1, alpha=1.0)
        self._root = Path()
        self._trainer: Any = None
        self._metric: Any = None

    # ---- life cycle ------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check module, datamodule and reference; be asked whenever a training loader is made."""
        if stage != "fit":
            return
        pl_module.configure_model()
        data: Any = getattr(trainer, "datamodule", None)
        require(pl_module, self, "policy", "reference", "sample")
        require(data, self, "write_samples", "write_pairs", "provide_train", "images")
        self._mover.setup(trainer, pl_module, stage)
        self._root = run_folder(trainer, self.path, "rounds")
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        self._trainer = trainer
        data.provide_train(self._training_file)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every few optimizer steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure at the end of a round, and let training end with the last one or with one that did not help."""
        if (trainer.current_epoch + 1) % self.epochs_per_round:
            return
        self._check(trainer, pl_module)
        if self.best["round"] < self.round:
            self._stop(f"round {self.round} did not lower FID below {self.best['fid']:.4g}")
        elif self.round + 1 >= self.rounds:
            self._stop(f"all {self.rounds} rounds are done")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the best weights in the policy."""
        if self.best:
            self._restore(pl_module)
        if trainer.is_global_zero and self.history:
            write_json(self._root / "fid.json", self.history)
            first = self.history[0]["fid"]
            rank_zero_info(f"FID {first:.4g} before, {self.best['fid']:.4g} at step {self.best['step']}, which is kept")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Be asked no more."""
        if self._trainer is not None:
            self._trainer.datamodule.provide_train(None)
            self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Round, measurements, and the best weights so far."""
        return {"round": self.round, "history": self.history, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the round of the checkpoint."""
        self.round, self.history, self.best = state_dict["round"], state_dict["history"], state_dict["best"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the reference of the round."""
        self._mover.on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the reference of the round back."""
        self._mover.on_load_checkpoint(trainer, pl_module, checkpoint)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _training_file(self) -> str | None:
        """The pairs of the round that the coming epoch belongs to, made now if they are not there."""
        number = self._trainer.current_epoch // self.epochs_per_round
        if self.round < number < self.rounds:
            module, data = self._trainer.lightning_module, self._trainer.datamodule
            if self.round < 0:
                self._check(self._trainer, module)
            else:
                self._promote(module)
            self.round = number
            with isolate_rng(), torch.no_grad():
                self._make_pairs(module, data)
        return str(self._root / round_name(self.round) / "pairs.jsonl") if self.round >= 0 else None

    def _promote(self, module: Any) -> None:
        """The best weights become policy and reference; the optimizer forgets."""
        self._restore(module)
        self._mover.move(module)
        for optimizer in self._trainer.optimizers:
            optimizer.state.clear()

    @torch.no_grad()
    def _restore(self, module: Any) -> None:
        for name, parameter in module.policy.named_parameters():
            if name in self.best["weights"]:
                parameter.copy_(self.best["weights"][name])

    def _make_pairs(self, module: Any, data: Any) -> None:
        """Sample for the captions of the real pictures, piece by piece, then write the pairs."""
        trainer, reals = self._trainer, self._reals(data)
        key = f"{weights_key(module)} {self.sampling} {self.seed} {self.piece} {len(reals)}"
        files = RoundFiles(self._root, self.round, key, list(reals), self.piece)
        training = module.training
        module.eval()
        todo = files.missing(trainer.global_rank, trainer.world_size)
        for index in progress(todo, files.pieces, f"round {self.round}: samples", hidden=not trainer.is_global_zero):
            captions = files.pieces[index]
            count = max(len(reals[c]) for c in captions)
            drawn = module.sample(captions, count, derive_seed(self.seed, "round", self.round, index), **self.sampling)
            name = f"{round_name(self.round)}/samples/{index:05d}"
            kept = [
                data.write_samples(self._root, f"{name}-{n}", list(drawn[n][: len(reals[c])]))
                for n, c in enumerate(captions)
            ]
            files.write(index, [{"condition": c, "samples": s} for c, s in zip(captions, kept, strict=True)])
        module.train(training)
        trainer.strategy.barrier("self-play: samples")
        if trainer.is_global_zero:
            rows = [
                {"condition": row["condition"], "chosen": real, "rejected": own}
                for row in files.rows()
                for real, own in zip(reals[row["condition"]], row["samples"], strict=True)
            ]
            data.write_pairs(self._root, f"{round_name(self.round)}/pairs", rows)
        trainer.strategy.barrier("self-play: pairs")

    def _reals(self, data: Any) -> dict[str, list[str]]:
        """Caption -> names of its real pictures, written once."""
        file, rows = self._root / "real.json", data.datasets["train"]
        if self.round == 0 and self._trainer.is_global_zero:
            order = torch.randperm(len(rows), generator=keyed_generator(self.seed, REAL)).tolist()
            found: dict[str, list[str]] = defaultdict(list)
            for i in sorted(order[: self.rows]):
                found[rows.captions[i]] += data.write_samples(
                    self._root, f"{REAL}/{i:07d}", [data.images("train", i)[0]]
                )
            write_json(file, found)
        self._trainer.strategy.barrier("self-play: real pictures")
        return json.loads(file.read_text(encoding="utf-8"))

    # ---- FID -------------------------------------------------------------------------------------------------------

    def _check(self, trainer: pl.Trainer, module: Any) -> None:
        """Measure, and keep the weights if they are the best so far."""
        step = trainer.global_step
        if self.history and self.history[-1]["step"] == step:
            return
        with isolate_rng(), torch.no_grad():
            fid = self._fid(module, trainer.datamodule)  # type: ignore[attr-defined]
        self.history.append({"step": step, "round": self.round, "fid": fid})
        for logger in trainer.loggers:
            logger.log_metrics({"rounds/fid": fid}, step=step)
        rank_zero_info(f"step {step}: FID {fid:.4g}")
        if not self.best or fid < self.best["fid"]:
            weights = {k: p.detach().cpu().clone() for k, p in module.policy.named_parameters() if p.requires_grad}
            self.best = {"fid": fid, "step": step, "round": self.round, "weights": weights}

    def _fid(self, module: Any, data: Any) -> float:
        rank, world = self._trainer.global_rank, self._trainer.world_size
        count = min(self.samples, len(data.datasets[self.split]))
        own = range(rank, count, world)
        if self._metric is None:
            self._metric = self._distance(module.device)
            for start in range(0, len(own), 64):
                pictures = [data.images(self.split, i)[0] for i in own[start : start + 64]]
                self._metric.update(torch.stack(pictures).to(module.device), real=True)
        self._metric.reset()
        captions = [data.datasets[self.split].captions[i] for i in own]
        training = module.training
        module.eval()
        made: Tensor = module.sample(captions, 1, derive_seed(self.seed, "fid", rank), **self.sampling)
        module.train(training)
        for part in made[:, 0].split(64):
            self._metric.update(part.to(module.device), real=False)
        return float(self._metric.compute())

    def _distance(self, device: torch.device) -> Any:
        from torchmetrics.image.fid import FrechetInceptionDistance

        feature = self.features if isinstance(self.features, int) else self.features.eval()
        return FrechetInceptionDistance(feature=feature, normalize=True, reset_real_features=False).to(device)

    def _stop(self, reason: str) -> None:
        rank_zero_info(f"training ends: {reason}")
        self._trainer.should_stop = True
