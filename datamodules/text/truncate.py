"""Rows that are too long: truncated by a stated policy, dropped, or refused; never emptied, never made equal unseen."""

from __future__ import annotations

from dataclasses import dataclass

from pl_prefopt.datamodules.text.tokenize import Encoded, Ids
from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.rows import BadRow

POLICIES = ("drop", "keep_start", "keep_end", "error")


class Dropped(Exception):
    """A row that the settings leave out; the text is the key under which it is counted."""


@dataclass(frozen=True)
class Truncation:
    """How rows are made to fit.

    A row whose prompt and longest completion fit into `max_length` stays as it is (unless its prompt is longer than an
    explicit `max_prompt_length`). Otherwise the prompt is truncated first, to `max_prompt_length` (default: what the
    longest completion leaves, but at least half of `max_length`), then each completion to what is left.

    Args:
        max_length: tokens of prompt + completion, BOS and EOS included.
        max_prompt_length: tokens of the prompt, BOS included; None limits it only where the whole is too long.
        prompt: "keep_end" (the turns next to the answer; a leading BOS stays), "keep_start", "drop" or "error".
        completion: "keep_start" (EOS is lost: the model is not taught to stop at the cut), "keep_end", "drop" or
            "error".

    Raises:
        ValueError: a length < 2, a prompt that leaves no room for a completion, or an unknown policy.
    """

    max_length: int = 1024
    max_prompt_length: int | None = None
    prompt: str = "keep_end"
    completion: str = "keep_start"

    def __post_init__(self) -> None:
        integer("max_length", self.max_length, least=2)
        integer("max_prompt_length", self.max_prompt_length, optional=True)
        choice("truncation.prompt", self.prompt, POLICIES)
        choice("truncation.completion", self.completion, POLICIES)
        if (self.max_prompt_length or 1) >= self.max_length:
            raise ValueError(
                "max_prompt_length must be below max_length, so that a completion has room, got "
                f"{self.max_prompt_length} with max_length {self.max_length}"
            )

    def __call__(self, row: Encoded, bos: int | None = None) -> Encoded:
        """Return the row, truncated where needed.

        Args:
            row: the row.
            bos: id of BOS, kept in front when the end of the prompt is kept.

        Raises:
            BadRow: too long under policy "error".
            Dropped: too long under "drop", or all completions equal, before or after the cut.
        """
        if _all_equal(row.completions):
            raise Dropped("identical_tokens")
        prompt = self._cut_prompt(row, bos)
        room = self.max_length - len(prompt)
        completions = [self._cut_completion(c, room) for c in row.completions]
        events = set(row.events)
        if len(prompt) < len(row.prompt):
            events.add("prompt_truncated")
        if completions != row.completions:
            events.add("completion_truncated")
        if _all_equal(completions):
            raise Dropped("identical_after_truncation")
        return Encoded(prompt, completions, events)

    def _cut_prompt(self, row: Encoded, bos: int | None) -> Ids:
        have, longest = len(row.prompt), max(map(len, row.completions))
        limit = self.max_prompt_length or max(self.max_length // 2, self.max_length - longest)
        fits = have + longest <= self.max_length and have <= (self.max_prompt_length or have)
        if fits or have <= limit:
            return row.prompt
        self._refuse(self.prompt, "prompt", have, limit)
        if self.prompt == "keep_start":
            return row.prompt[:limit]
        head = row.prompt[:1] if row.prompt[0] == bos else []
        return head + row.prompt[have - limit + len(head) :]

    def _cut_completion(self, ids: Ids, room: int) -> Ids:
        if len(ids) <= room:
            return ids
        self._refuse(self.completion, "completion", len(ids), room)
        return ids[:room] if self.completion == "keep_start" else ids[-room:]

    def _refuse(self, policy: str, what: str, have: int, limit: int) -> None:
        if policy == "drop":
            raise Dropped(f"{what}_too_long")
        if policy == "error":
            accepted = (
                f"at most {limit} tokens (max_length {self.max_length}, max_prompt_length {self.max_prompt_length})"
            )
            raise BadRow(
                f"{what}_too_long",
                what,
                f"{have} tokens",
                accepted,
                f"Raise max_length or choose another policy in truncation.{what}.",
            )


def _all_equal(completions: list[Ids]) -> bool:
    return all(c == completions[0] for c in completions)


MOVED = {
    "max_length": "truncation.max_length",
    "max_prompt_length": "truncation.max_prompt_length",
    "prompt_truncation": "truncation.prompt",
    "completion_truncation": "truncation.completion",
}
"""Earlier argument of `TextPreferenceDataModule` -> where it is now."""
