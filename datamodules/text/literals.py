"""Special tokens that stand literally in data, such as "<eos>" inside an answer: text, not tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pl_prefopt.datamodules.text.formats import Example
from pl_prefopt.datamodules.tokenizers import Tokenizer
from pl_prefopt.utilities.checks import choice
from pl_prefopt.utilities.rows import BadRow, abbreviate

POLICIES = ("escape", "allow", "error")
BREAK = "\ufdd0"
"""A noncharacter of Unicode, reserved for use inside programs: it is put into a literal, and its ids are removed."""
Ids = list[int]


class LiteralTokens:
    """Keeps special tokens in data from becoming special tokens.

    In the turns of other roles than the assistant's, also the added tokens that the chat template writes (turn markers
    that are not declared special) stay text; answers may hold them, for example "<think>".

    A BOS with which a plain prompt begins and an EOS with which a plain completion ends are what they say.

    Args:
        tokenizer: the tokenizer.
        policy: "escape" tokenises them as text, "allow" as special tokens, "error" refuses the row.
    """

    def __init__(self, tokenizer: Tokenizer, policy: str) -> None:
        choice("special_tokens", policy, POLICIES)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {*map(str, getattr(tokenizer, "all_special_tokens", ())), *(str(t) for t in added if t.special)}
        template = str(tokenizer.chat_template or "")
        self.tokenizer, self.policy = tokenizer, policy
        self._special = _any_of(special)
        self._markers = _any_of(special | {str(t) for t in added if str(t) in template})

    def escape(self, example: Example) -> Example:
        """Return the example with literals broken by `BREAK`, to be tokenised by `ids`; counted as an event.

        Raises:
            BadRow: a literal under the policy "error", or text that holds `BREAK` itself.
        """
        if self.policy == "allow":
            return example
        if example.conversational:
            escaped = replace(
                example,
                prompt=self._turns(example.prompt or []),
                completions=[self._turns(turns) for turns in example.completions],
                tools=self._broken(example.tools, self._markers),
                template_kwargs=self._broken(example.template_kwargs, self._markers),
            )
        else:
            escaped = replace(
                example,
                prompt=None if example.prompt is None else self.prompt(str(example.prompt)),
                completions=[self._completion(str(c), whole=example.prompt is None) for c in example.completions],
            )
        return escaped

    def prompt(self, text: str) -> str:
        """Return a plain prompt with its literals broken, BOS in front aside."""
        return self._between(text, str(getattr(self.tokenizer, "bos_token", None) or ""), "")

    def ids(self, text: str) -> Ids:
        """Return the ids of a text with broken literals, without those of `BREAK`.

        Raises:
            BadRow: the tokenizer joins `BREAK` with what stands beside it, or does not say where tokens begin.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise self._refused(text.replace(BREAK, ""), "which this slow tokenizer cannot keep as text")
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        ids: Ids = []
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            piece = text[start:end]
            if BREAK not in piece:
                ids.append(token)
            elif piece != BREAK:
                raise self._refused(text.replace(BREAK, ""), "which this tokenizer cannot keep as text")
        return ids

    def _turns(self, turns: Any) -> list[dict[str, Any]]:
        return [
            {
                name: value if name == "role" else self._broken(value, self._pattern_of(turn["role"]))
                for name, value in turn.items()
            }
            for turn in turns
        ]

    def _pattern_of(self, role: str) -> re.Pattern[str]:
        return self._special if role == "assistant" else self._markers

    def _completion(self, text: str, *, whole: bool) -> str:
        bos = str(getattr(self.tokenizer, "bos_token", None) or "") if whole else ""
        return self._between(text, bos, str(self.tokenizer.eos_token or ""))

    def _between(self, text: str, begin: str, end: str) -> str:
        start = len(begin) if begin and text.startswith(begin) else 0
        stop = len(text) - len(end) if end and text.endswith(end) else len(text)
        return text[:start] + self._broken(text[start:stop], self._special) + text[stop:]

    def _broken(self, value: Any, pattern: re.Pattern[str]) -> Any:
        """Break the literals in all texts of a plain value."""
        if isinstance(value, str):
            if BREAK in value:
                found = f"{abbreviate(value)} with U+{ord(BREAK):04X}, which is no character"
                raise BadRow("noncharacter", "text", found, "valid Unicode text")
            if self.policy == "error" and pattern.search(value):
                raise self._refused(value, "as text")
            return pattern.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", value)
        if isinstance(value, dict):
            return {self._broken(k, pattern): self._broken(v, pattern) for k, v in value.items()}
        return [self._broken(item, pattern) for item in value] if isinstance(value, (list, tuple)) else value

    def _refused(self, text: str, problem: str) -> BadRow:
        match = self._markers.search(text)
        hint = (
            "Set special_tokens: escape to tokenise it as text, or allow if the data were written for this tokenizer."
        )
        found = f"the special token {match[0] if match else ''!r} {problem}"
        return BadRow("special_token", "text", found, "text without special tokens", hint)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first; one character is no literal."""
    literals = sorted((token for token in tokens if len(token) > 1), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, literals)) or r"(?!)")
