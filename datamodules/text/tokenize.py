"""Text to token ids: the border between prompt and completion is fixed at token level and never crossed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from pl_prefopt.datamodules.text.formats import Example, Message
from pl_prefopt.datamodules.text.literals import BREAK, Ids, LiteralTokens
from pl_prefopt.utilities.checks import choice
from pl_prefopt.utilities.rows import BadRow, abbreviate

EOS_POLICIES = ("append", "keep")


@dataclass(slots=True)
class Encoded:
    """Token ids of one row. `events` names what was done to it, for the counts."""

    prompt: Ids
    completions: list[Ids]
    events: set[str] = field(default_factory=set)


class Encoder:
    """Tokenise examples, many at a time.

    The prompt's ids are those of the prompt alone, which is what the model is given when it generates. A completion's
    ids are the rest of prompt + completion tokenised together if that begins with the prompt's ids; if a token would
    cross the border, the completion is tokenised by itself (counted as `split_at_border`). So a label never swallows a
    piece of the prompt, and both completions follow the very same prompt ids.

    Args:
        tokenizer: a `transformers` tokenizer.
        eos: "append": every completion ends in EOS, once; a chat template's own end-of-turn token counts as such, and
            whitespace that the template puts behind it is removed. "keep": ids as the text has them.
        allow_empty_prompt: an empty prompt becomes BOS.
        chat_template_kwargs: arguments for the chat template, below those of the row.
        special_tokens: what becomes of special tokens that stand literally in data, see `LiteralTokens`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        eos: str = "append",
        allow_empty_prompt: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        special_tokens: str = "escape",
    ) -> None:
        choice("eos", eos, EOS_POLICIES)
        self.literals = LiteralTokens(tokenizer, special_tokens)
        self.tokenizer, self.eos, self.allow_empty_prompt = tokenizer, eos, allow_empty_prompt
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.specials = set(tokenizer.all_special_ids) | {
            i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(t, "special", False)
        }
        arguments = inspect.signature(tokenizer.apply_chat_template).parameters
        self._reserved = {*arguments, *tokenizer.special_tokens_map, "messages", "conversation", "chat_template"}
        bare, full = self._ids(["a"])[0], tokenizer("a")["input_ids"]
        self.adds_bos = len(full) > len(bare) and full[0] == tokenizer.bos_token_id

    def __call__(self, examples: list[Example]) -> list[Encoded | BadRow]:
        """Tokenise; a row that cannot be used comes back as the error that says why."""
        texts = [self._texts(e) for e in examples]
        usable = [(i, t) for i, t in enumerate(texts) if not isinstance(t, BadRow) and not _has_literals(t)]
        prompts = iter(self._ids([t[0] for _, t in usable if t[0] is not None]))
        fulls = iter(self._ids([text for _, t in usable for text in t[1]]))
        rows: list[Encoded | BadRow] = [t if isinstance(t, BadRow) else Encoded([], []) for t in texts]
        for i, (prompt, full) in usable:
            ids = None if prompt is None else next(prompts)
            joint = [next(fulls) for _ in full]
            try:
                rows[i] = self._row(examples[i], prompt, full, ids, joint)
            except BadRow as error:
                rows[i] = error
        for i, text in enumerate(texts):
            if not isinstance(text, BadRow) and _has_literals(text):
                rows[i] = self._with_literals(examples[i], *text)
        return rows

    def prompt_ids(self, text: str) -> Ids:
        """Return the ids of a prompt of plain text, BOS included where the tokenizer adds one."""
        row = Encoded(self._ids([text if self.literals.policy == "allow" else self.literals.prompt(text)])[0], [])
        self._begin(row, Example(text, [""]))
        return row.prompt

    def _with_literals(self, example: Example, prompt: str | None, full: list[str]) -> Encoded | BadRow:
        """Tokenise a row that holds special tokens as text."""
        try:
            ids = None if prompt is None else self._ids([prompt])[0]
            row = self._row(example, prompt, full, ids, self._ids(full))
        except BadRow as error:
            return error
        row.events.add("special_tokens_escaped")
        return row

    def _row(self, example: Example, prompt: str | None, full: list[str], ids: Ids | None, joint: list[Ids]) -> Encoded:
        if ids is None or prompt is None:
            row = self._common_prefix(joint)
        else:
            row = Encoded(ids, [])
            for text, together in zip(full, joint, strict=True):
                row.completions.append(self._behind(row, together, text[len(prompt) :]))
        self._begin(row, example)
        for i, completion in enumerate(row.completions):
            if not completion:
                raise BadRow(
                    "empty_completion",
                    _name(i, len(full)),
                    f"{abbreviate(full[i])}, which gives no token",
                    "text that the tokenizer knows",
                )
            row.completions[i] = self._end(completion, example.conversational)
        return row

    def _texts(self, example: Example) -> tuple[str | None, list[str]] | BadRow:
        try:
            example = self.literals.escape(example)
            if example.conversational:
                return self._rendered(example)
            completions = [c for c in example.completions if isinstance(c, str)]
            assert example.prompt is None or isinstance(example.prompt, str)
            return example.prompt, [(example.prompt or "") + c for c in completions]
        except BadRow as error:
            return error

    def _rendered(self, example: Example) -> tuple[str, list[str]]:
        prompt = example.prompt
        assert isinstance(prompt, list)
        ends_open = prompt[-1]["role"] == "assistant"
        start = self._render(prompt, example, add_generation_prompt=not ends_open, continue_final_message=ends_open)
        full = [self._render(prompt + c, example) for c in example.completions if not isinstance(c, str)]
        for i, text in enumerate(full):
            if not text.startswith(start):
                same = next((n for n, (a, b) in enumerate(zip(start, text, strict=False)) if a != b), len(text))
                raise BadRow(
                    "prompt_not_prefix",
                    _name(i, len(full)),
                    "a conversation whose prompt the chat template writes differently once the answer follows "
                    f"(after {abbreviate(start[max(0, same - 20) : same])})",
                    "a conversation whose rendering begins with the rendering of its prompt",
                    "Set chat_template_kwargs or chat_template.",
                )
        return start, full

    def _render(self, turns: list[Message], example: Example, **options: Any) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise BadRow(
                "no_chat_template",
                "prompt",
                "a conversation, but the tokenizer has no chat template",
                "plain text",
                "Set chat_template: <a jinja text or the path of one> for conversations.",
            )
        reserved = example.template_kwargs.keys() & self._reserved
        if reserved:
            raise BadRow(
                "template_argument",
                f"chat_template_kwargs.{min(reserved)}",
                "an argument that decides how the template is applied",
                "a variable of the chat template's own, for example enable_thinking",
                "Give such arguments to the datamodule: chat_template, chat_template_kwargs.",
            )
        kwargs = self.chat_template_kwargs | example.template_kwargs | options
        try:
            return self.tokenizer.apply_chat_template(turns, tools=example.tools, tokenize=False, **kwargs)
        except Exception as error:  # templates raise what they like
            raise BadRow(
                "template_error",
                "prompt",
                f"one that it refuses ({error})",
                "a conversation that the chat template can render",
            ) from None

    def _ids(self, texts: list[str]) -> list[Ids]:
        if any(BREAK in text for text in texts):
            return [self.literals.ids(text) if BREAK in text else self._ids([text])[0] for text in texts]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _behind(self, row: Encoded, joint: Ids, completion: str) -> Ids:
        if joint[: len(row.prompt)] == row.prompt:
            return joint[len(row.prompt) :]
        row.events.add("split_at_border")
        # Tokenised alone, a text may get a leading space (SentencePiece) that it does not have inside the whole. After
        # a newline it gets none, and the ids of the newline are then removed.
        anchor, anchored = self._ids(["\n", "\n" + completion])
        return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else self._ids([completion])[0]

    def _common_prefix(self, joint: list[Ids]) -> Encoded:
        """Take the longest common run of tokens as prompt, leaving each completion at least one."""
        shortest = min(map(len, joint)) - 1
        shared = next((i for i in range(shortest) if any(ids[i] != joint[0][i] for ids in joint)), max(shortest, 0))
        if shared < 1 and not (self.adds_bos and self.allow_empty_prompt):
            raise BadRow(
                "no_prompt",
                "prompt",
                "no column, and completions that do not begin alike",
                "a column, or the common beginning of the completions",
            )
        return Encoded(joint[0][:shared], [ids[shared:] for ids in joint])

    def _begin(self, row: Encoded, example: Example) -> None:
        bos = self.tokenizer.bos_token_id
        wanted = (self.adds_bos and not example.conversational) or (not row.prompt and self.allow_empty_prompt)
        if wanted and bos is not None and row.prompt[:1] != [bos]:
            row.prompt = [bos, *row.prompt]
        if not row.prompt:
            raise BadRow(
                "empty_prompt",
                "prompt",
                f"{abbreviate(example.prompt)}, which gives no token",
                "text, or a tokenizer with BOS and allow_empty_prompt",
            )

    def _end(self, ids: Ids, conversational: bool) -> Ids:
        if self.eos == "keep":
            return ids
        if conversational and (stop := self._last_special(ids)):
            return ids[:stop]
        return ids if ids[-1] == self.tokenizer.eos_token_id else [*ids, self.tokenizer.eos_token_id]

    def _last_special(self, ids: Ids) -> int:
        """Length up to and including the end-of-turn token, whitespace behind it left out; 0 where there is none."""
        stop = len(ids)
        while stop and ids[stop - 1] not in self.specials and not self.tokenizer.decode([ids[stop - 1]]).strip():
            stop -= 1
        return stop if stop > 1 and ids[stop - 1] in self.specials else 0


def _has_literals(texts: tuple[str | None, list[str]]) -> bool:
    prompt, full = texts
    return any(BREAK in text for text in (prompt or "", *full))


def _name(index: int, count: int) -> str:
    return ("chosen", "rejected")[index] if count == 2 else f"completions[{index}]"
