"""`PairScores`: the one container between a modality and an objective; and the only list of data columns.

Shapes: B pairs (or lists), K cells of a row. A pair has K = 2: cell 0 is chosen, 1 is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor


class Column(NamedTuple):
    """A numeric column that data may bring.

    Args:
        per: "row" (B,), "sample" (B, K), with a further axis M for `margins`, or "token" (B, K, T).
        low: least accepted value.
        high: greatest accepted value.
    """

    per: Literal["row", "sample", "token"]
    low: float = -math.inf
    high: float = math.inf


COLUMNS: dict[str, Column] = {
    "weight": Column("row", low=0.0),
    "margin": Column("row"),
    "preference_prob": Column("row", low=0.0, high=1.0),
    "relevance": Column("sample"),
    "ranks": Column("sample"),
    "targets": Column("sample"),
    "margins": Column("sample"),
    "token_weights": Column("token", low=0.0),
}
"""All data columns that objectives read, by name; readers, collators and modules take them from here."""


def data_columns(batch: Mapping[str, object]) -> dict[str, Tensor]:
    """The data columns of a batch."""
    return {name: value for name in COLUMNS if isinstance(value := batch.get(name), Tensor)}


class Cell(NamedTuple):
    """What a sample is scored under; 0 is the winning (best) alternative of each part, 1 the losing one, and so on.

    Args:
        answer: index of the completion, image, clip, ...
        image: index of the image that is shown (vision-language).
        context: index of the text context.
    """

    answer: int = 0
    image: int = 0
    context: int = 0


@dataclass(frozen=True)
class PairScores:
    """What a module knows about B rows of K cells each, ready for any objective.

    Args:
        logratios: (B, K) log pi(y|x) - log pi_ref(y|x) in nats, or its denoising surrogate. Without a reference the
            reference term is zero, so this equals `logps`.
        logps: (B, K) log pi(y|x) of the policy, reduced over tokens as the objective asked; None where the modality
            has no tractable likelihood.
        ref_logps: (B, K) the same under the reference, without gradient.
        sum_logps: (B, K) plain sum of the policy's token log-probabilities, whatever the objective's reduction.
        lengths: (B, K) number of tokens that were scored.
        kl: (B, K) sum over positions of KL(ref || policy), only when the objective needs it.
        collision: (B, K) mean over tokens of log p_t - log sum_v p_v^2 under the policy, without gradient (WPO).
        mask: (B, K) bool, False for the padding of ragged lists; None means all real.
        errors: (B, K) denoising error of the policy (diffusion modalities).
        ref_errors: (B, K) that of the reference.
        columns: data columns of the batch, see `COLUMNS`.
        outputs: further tensors of the module, by name: `error_products`, `timestep`, `level`, `safeguard`, ...
        cells: names of the K cells; empty means that cell k is the k-th answer under the winning image and context.
    """

    logratios: Tensor
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    sum_logps: Tensor | None = None
    lengths: Tensor | None = None
    kl: Tensor | None = None
    collision: Tensor | None = None
    mask: Tensor | None = None
    errors: Tensor | None = None
    ref_errors: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()

    def position(self, cell: Cell) -> int:
        """Index k of a cell.

        Raises:
            ValueError: the row has no such cell.
        """
        cells = self.cells or tuple(Cell(answer) for answer in range(self.logratios.shape[1]))
        if cell not in cells:
            raise ValueError(f"cell must be one of {', '.join(map(str, cells))}, got {cell}")
        return cells.index(cell)

    def logratio(self, answer: int = 0, image: int = 0, context: int = 0) -> Tensor:
        """(B,) log-ratio of one cell."""
        return self.logratios[:, self.position(Cell(answer, image, context))]

    @property
    def chosen(self) -> Tensor:
        """(B,) log-ratio of the chosen sample."""
        return self.logratios[:, 0] if not self.cells else self.logratio(answer=0)

    @property
    def rejected(self) -> Tensor:
        """(B,) log-ratio of the rejected sample."""
        return self.logratios[:, 1] if not self.cells else self.logratio(answer=1)
