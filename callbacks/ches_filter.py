"""Drop the pairs whose two samples look alike to the model, before training on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from pl_prefopt.callbacks.support.ches_report import report
from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import evaluating, run_folder
from pl_prefopt.metrics.functional import ches_score
from pl_prefopt.utilities.sharding import whole


class CHESFilter(pl.Callback):
    """Score every training pair by CHES under the initial policy, and train on the least similar ones.

    One pass over the training rows without the output layer (Razin et al. 2024, 2410.08847): sort ascending by the
    score, keep the lowest. The paper keeps 5 % of SORRY-Bench; up to about 15 % behaves alike there. Scores go to
    Parquet, shared by ranks and continued after an interruption; what was kept is in the checkpoint, so a resumed run
    trains on the same rows. On other modalities the score is taken on the features that the module calls hidden states,
    which is our generalisation: the claim of
    the paper is about the output layer of language models only.

    Args:
        fraction: share in (0, 1] of the pairs to keep; give exactly one of `fraction`, `threshold` and `rank`.
        threshold: keep pairs that score below; scores of different models are not comparable.
        rank: number of pairs to keep.
        normalize: length-normalised score.
        batch_size: pairs per forward pass.
        path: folder of scores and report; None: `ches` in the run folder.
        part: pairs per Parquet file, which is what an interruption loses on every rank, >= 1.

    Raises:
        ValueError: settings out of range; before the first step, rows without random access or a filter that keeps
            nothing.
        TypeError: the module lacks `policy` or `pair_hidden_states`.
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
        ways = {"fraction": fraction, "threshold": threshold, "rank": rank}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of fraction, threshold and rank; got {given or 'none'}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be >= 1, got {rank}")
        for name, value in (("batch_size", batch_size), ("part", part)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.fraction, self.threshold, self.rank = fraction, threshold, rank
        self.normalize, self.batch_size, self.path = normalize, batch_size, path
        self.part = part
        self._kept: list[int] | None = None
        self._digest = ""
        self._selected: Any = None

    @property
    def state_key(self) -> str:
        """Two instances with other settings have other keys."""
        return self._generate_state_key(fraction=self.fraction, threshold=self.threshold, rank=self.rank)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module."""
        pl_module.configure_model()
        require(pl_module, self, "policy", "pair_hidden_states")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, choose, and put the chosen rows in place of the training set."""
        data: Any = getattr(trainer, "datamodule", None)
        rows: Any = getattr(data, "datasets", {}).get("train")
        if not random_access(rows) or getattr(data, "collate", None) is None:
            raise ValueError(
                "CHESFilter needs a datamodule with datasets['train'] (random access) and collate(rows), found "
                f"{type(data).__name__} with train {type(rows).__name__}; our data modules have both without streaming"
            )
        if self._selected is not None and rows is self._selected:
            return
        digest = rows.digest() if hasattr(rows, "digest") else str(len(rows))
        if self._kept is not None and digest != self._digest:
            raise ValueError(
                f"CHESFilter: the checkpoint chose among training rows {self._digest}, this run has {digest}; resume "
                "with the same data, or start a new run from the exported weights"
            )
        self._digest = digest
        if self._kept is None:
            folder = run_folder(trainer, self.path, "ches")
            scores = self._scores(trainer, pl_module, data, rows, folder)
            self._kept = self._choose(scores)
            if trainer.is_global_zero:
                report(folder, scores, self._kept, data)
        self._selected = select(rows, self._kept)
        data.datasets["train"] = self._selected
        rank_zero_info(f"CHES: {len(self._kept)} of {len(rows)} training pairs are kept")

    def state_dict(self) -> dict[str, Any]:
        """Ids of the rows that were kept, and the key of the rows they were chosen from."""
        return {"kept": self._kept, "digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the same rows."""
        self._kept, self._digest = state_dict["kept"], state_dict["digest"]

    def _choose(self, scores: np.ndarray) -> list[int]:
        if not np.isfinite(scores).all():
            odd = np.flatnonzero(~np.isfinite(scores))
            raise ValueError(
                f"the CHES score of {len(odd)} training pairs is not finite (rows {odd[:5].tolist()}); look at "
                "them, or use another precision"
            )
        order = np.argsort(scores, kind="stable")
        if self.threshold is not None:
            kept = np.flatnonzero(scores < self.threshold)
        else:
            kept = order[: self.rank if self.rank is not None else round(len(scores) * (self.fraction or 0))]
        if not len(kept):
            raise ValueError(
                f"the CHES filter keeps none of {len(scores)} pairs; scores lie between {scores.min():.4g} and "
                f"{scores.max():.4g}: choose a larger fraction, rank or threshold"
            )
        return sorted(int(i) for i in kept)

    def _scores(
        self, trainer: pl.Trainer, module: pl.LightningModule, data: Any, rows: Any, folder: Path
    ) -> np.ndarray:
        """(N,) scores of all rows; this rank makes its share of the missing parts."""
        import pyarrow.parquet as pq

        key = hashlib.sha256(
            json.dumps([self._digest, self.part, self.normalize, weights_key(module)]).encode()
        ).hexdigest()[:16]
        parts = [range(i, min(i + self.part, len(rows))) for i in range(0, len(rows), self.part)]
        files = [folder / f"{key}-{i:06d}.parquet" for i in range(len(parts))]
        folder.mkdir(parents=True, exist_ok=True)
        together = getattr(module, "device_mesh", None) is not None  # a sharded policy runs on all ranks at once
        missing = [i for i in range(len(parts)) if not files[i].exists()]
        trainer.strategy.barrier("ches begins")
        todo = missing if together else missing[trainer.global_rank :: trainer.world_size]
        for i in progress(todo, parts, hidden=not trainer.is_global_zero):
            scores = self._score_rows(trainer, module, data, rows, parts[i])
            if trainer.is_global_zero or not together:
                write_part(files[i], parts[i], scores)
        trainer.strategy.barrier("ches ends")
        return np.concatenate([pq.read_table(f)["ches"].to_numpy() for f in files])

    @torch.no_grad()
    def _score_rows(self, trainer: pl.Trainer, module: Any, data: Any, rows: Any, part: Sequence[int]) -> np.ndarray:
        lengths = getattr(rows, "lengths", None)
        order = sorted(part, key=lambda i: 0 if lengths is None else -int(lengths[i]))
        out = np.zeros(len(part), dtype=np.float32)
        with evaluating(module), trainer.precision_plugin.forward_context():
            for start in range(0, len(order), self.batch_size):
                ids = order[start : start + self.batch_size]
                batch = move_data_to_device(data.collate([rows[i] for i in ids]), module.device)
                scores = ches_score(*module.pair_hidden_states(batch), normalize=self.normalize)
                out[np.asarray(ids) - part[0]] = scores.cpu().numpy()
        return out


def random_access(rows: Any) -> bool:
    """Whether rows have a number and can be asked for by it."""
    known = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    return known and not isinstance(rows, torch.utils.data.IterableDataset)


def weights_key(module: Any) -> str:
    """A cheap key of the policy's weights: name, shape and sum of every parameter."""
    weights = {name: whole(p.detach()) for name, p in module.policy.named_parameters()}
    sums = [f"{name} {tuple(p.shape)} {float(p.double().sum()):.12g}" for name, p in weights.items()]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def select(rows: Any, kept: Sequence[int]) -> Any:
    """The kept rows: `rows.select` where there is one, else a torch Subset."""
    if hasattr(rows, "select"):
        return rows.select(np.asarray(kept))
    return torch.utils.data.Subset(rows, list(kept))


def progress(todo: Sequence[int], parts: Sequence[Sequence[int]], *, hidden: bool) -> Iterator[int]:
    """Go through parts with a bar that counts rows."""
    from tqdm.auto import tqdm

    total = sum(len(parts[i]) for i in todo)
    with tqdm(total=total, desc="CHES scores", unit="pair", disable=hidden or not todo, leave=False) as bar:
        for i in todo:
            yield i
            bar.update(len(parts[i]))


def write_part(file: Path, rows: Sequence[int], scores: np.ndarray) -> None:
    """One Parquet file, complete or absent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.table({"row": np.asarray(rows), "ches": scores}), part)
    os.replace(part, file)
