"""Drop the pairs whose two samples are most similar to the model, before training on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from pl_prefopt.callbacks.support.ches_report import report
from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.protocols import (
    HasDigest,
    HasHiddenStates,
    HasRows,
    RandomAccessRows,
    datamodule_of,
    require,
)
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.metrics.functional import ches_score
from pl_prefopt.utilities.checks import integer, within
from pl_prefopt.utilities.digests import json_digest, weights_key
from pl_prefopt.utilities.files import Parts, track, write_atomic


class CHESFilter(pl.Callback):
    """Score every training pair by CHES under the initial policy, and train on the least similar ones.

    One pass over the training rows without the output layer (Razin et al. 2024, 2410.08847): sort ascending by the
    score, keep the lowest. The paper keeps 5 % of SORRY-Bench; up to about 15 % gives similar results there. Scores go
    to Parquet, shared by ranks and continued after an interruption; the rows that were kept are in the checkpoint, so a
    resumed run trains on the same rows. On other modalities the score is computed from the features that the module
    calls hidden states, which is our generalisation: the claim of the paper is about the output layer of language
    models only.

    Args:
        fraction: share in (0, 1] of the pairs to keep; give exactly one of `fraction`, `threshold` and `rank`.
        threshold: keep pairs that score below; scores of different models are not comparable.
        rank: number of pairs to keep, >= 1.
        normalize: length-normalised score.
        batch_size: pairs per forward pass, >= 1.
        path: folder of scores and report; None: `ches` in the run folder.
        part: pairs per Parquet file, at most which an interruption loses on every rank, >= 1.

    Raises:
        ValueError: settings out of range; before the first step, rows without random access, a score that is not
            finite, or a filter that keeps nothing; on resume, other training rows.
        TypeError: in `setup`, a module without `policy` or `pair_hidden_states`.
    """

    def __init__(
        self,
        fraction: float | None = None,
        threshold: float | None = None,
        rank: int | None = None,
        normalize: bool = True,
        batch_size: int = 8,
        path: str | None = None,
        part: int = 256,
    ) -> None:
        criteria = {"fraction": fraction, "threshold": threshold, "rank": rank}
        chosen = [name for name, value in criteria.items() if value is not None]
        if len(chosen) != 1:
            raise ValueError(f"exactly one of fraction, threshold and rank must be set, got {chosen or 'none'}")
        if fraction is not None:
            within("fraction", fraction, 0, 1, open_low=True)
        integer("rank", rank, optional=True)
        integer("batch_size", batch_size)
        integer("part", part)
        self.fraction, self.threshold, self.rank = fraction, threshold, rank
        self.normalize, self.batch_size, self.path = normalize, batch_size, path
        self.part = part
        self._kept: list[int] | None = None
        self._digest = ""
        self._selected: RandomAccessRows | None = None

    @property
    def state_key(self) -> str:
        """Two instances with different settings have different keys."""
        return self._generate_state_key(fraction=self.fraction, threshold=self.threshold, rank=self.rank)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module."""
        pl_module.configure_model()
        require(pl_module, self, HasHiddenStates)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, choose, and replace the training rows by the chosen ones."""
        data = random_access_data(datamodule_of(trainer))
        rows = data.datasets["train"]
        if self._selected is not None and rows is self._selected:  # a second fit of the same objects
            return
        digest = rows.digest() if isinstance(rows, HasDigest) else str(len(rows))
        if self._kept is not None and digest != self._digest:
            raise ValueError(
                f"training rows must be those of the checkpoint, {self._digest}, got {digest}. CHESFilter has chosen "
                "among them: resume with the same data, or start a new run from the exported weights"
            )
        self._digest = digest
        if self._kept is None:
            folder = run_folder(trainer, self.path, "ches")
            scores = self._scores(trainer, pl_module, data, folder)
            self._kept = self._choose(scores)
            if trainer.is_global_zero:
                report(folder, scores, self._kept, data)
        self._selected = select(rows, self._kept)
        data.datasets["train"] = self._selected
        rank_zero_info(f"CHES: {len(self._kept)} of {len(rows)} training pairs are kept")

    def state_dict(self) -> dict[str, Any]:
        """Return the ids of the rows that were kept, and a digest of the rows they were chosen from."""
        return {"kept": self._kept, "digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the same rows."""
        self._kept, self._digest = state_dict["kept"], state_dict["digest"]

    def _choose(self, scores: np.ndarray) -> list[int]:
        """Ids of the rows to keep, ascending."""
        invalid = np.flatnonzero(~np.isfinite(scores))
        if len(invalid):
            raise ValueError(
                f"CHES scores must be finite, got {len(invalid)} training pairs with another one (rows "
                f"{invalid[:5].tolist()}). Inspect those rows, or use another precision"
            )
        if self.threshold is not None:
            kept = np.flatnonzero(scores < self.threshold)
        else:
            count = self.rank if self.rank is not None else round(len(scores) * (self.fraction or 0))
            kept = np.argsort(scores, kind="stable")[:count]
        if not len(kept):
            raise ValueError(
                f"CHESFilter must keep at least one pair, but keeps none of {len(scores)} pairs; scores lie between "
                f"{scores.min():.4g} and {scores.max():.4g}. Choose a larger fraction, rank or threshold"
            )
        return sorted(int(i) for i in kept)

    def _scores(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: HasRows, folder: Path) -> np.ndarray:
        """(N,) scores of all training rows; this rank computes its share of the missing parts."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        weights = weights_key(cast(HasHiddenStates, pl_module).policy)
        key = json_digest([self._digest, self.part, self.normalize, weights])[:16]
        parts = Parts(folder, len(data.datasets["train"]), self.part, f"{key}-{{part:06d}}.parquet")
        # Every forward pass of a policy that is sharded over ranks needs all ranks; otherwise they share the parts.
        sharded = pl_module.device_mesh is not None
        missing = parts.missing() if sharded else parts.missing(trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier("ches: all ranks know the missing parts before any is written")
        for part in track(
            missing,
            "CHES scores",
            unit="pair",
            size=lambda part: len(parts.items(part)),
            hidden=not trainer.is_global_zero,
        ):
            items = parts.items(part)
            scores = self._score_rows(trainer, pl_module, data, items)
            if trainer.is_global_zero or not sharded:
                table = pa.table({"row": np.asarray(items), "ches": scores})
                write_atomic(parts.file(part), lambda path, table=table: pq.write_table(table, path))
        trainer.strategy.barrier("ches: all parts are written")
        return np.concatenate([pq.read_table(file)["ches"].to_numpy() for file in parts.files()])

    @torch.no_grad()
    def _score_rows(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: HasRows, items: range
    ) -> np.ndarray:
        """(n,) float32 scores of consecutive training rows."""
        rows, module = data.datasets["train"], cast(HasHiddenStates, pl_module)
        lengths: Sequence[int] | None = getattr(rows, "lengths", None)
        # Rows of like length share a batch, so that little is padding; the longest come first and show memory errors.
        order = list(items) if lengths is None else sorted(items, key=lambda i: -int(lengths[i]))
        scores = np.zeros(len(items), dtype=np.float32)
        with evaluating(pl_module), trainer.precision_plugin.forward_context():
            for start in range(0, len(order), self.batch_size):
                ids = order[start : start + self.batch_size]
                batch = move_data_to_device(data.collate([rows[i] for i in ids]), pl_module.device)
                values = ches_score(*module.pair_hidden_states(batch), normalize=self.normalize)
                scores[np.asarray(ids) - items.start] = values.cpu().numpy()
        return scores


def random_access_data(data: object) -> HasRows:
    """Check that a datamodule has training rows with random access, and a collate function.

    Raises:
        ValueError: it has not.
    """
    rows = getattr(data, "datasets", {}).get("train")
    indexed = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    if not indexed or isinstance(rows, torch.utils.data.IterableDataset) or getattr(data, "collate", None) is None:
        raise ValueError(
            "datamodule must have datasets['train'] (random access) and collate(rows), got "
            f"{type(data).__name__} with train {type(rows).__name__}. CHESFilter chooses among rows: use data "
            "without streaming"
        )
    return cast(HasRows, data)


def select(rows: RandomAccessRows, kept: Sequence[int]) -> RandomAccessRows:
    """Return the kept rows: `rows.select` where there is one, else a torch Subset."""
    if hasattr(rows, "select"):
        return rows.select(np.asarray(kept))  # pyright: ignore[reportAttributeAccessIssue]
    return torch.utils.data.Subset(cast(torch.utils.data.Dataset, rows), list(kept))
