"""Tokenizers that YAML can name: one that exists, or one that is trained on the data, offline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.configurable import Configurable
from pl_prefopt.utilities.files import create_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import Trainer

SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
KINDS = ("bpe", "word")


class Tokenizer(Protocol):
    """What is used of a `transformers` tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    eos_token: Any
    all_special_ids: list[int]
    special_tokens_map: dict[str, Any]
    chat_template: Any

    def __len__(self) -> int: ...
    def __call__(self, text: str | list[str], **options: Any) -> Any: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> str: ...
    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def save_pretrained(self, save_directory: str | Path) -> Any: ...


class TokenizerBuilder(Configurable):
    """Builds a `transformers` tokenizer when called."""

    def __call__(self, texts: Callable[[], Iterator[str]], key: str, cache: Path) -> Tokenizer:
        """Build the tokenizer.

        Args:
            texts: returns a new iterator over the training texts each time it is called.
            key: key of their content.
            cache: the data cache.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")


class PretrainedTokenizer(TokenizerBuilder):
    """A tokenizer of a hub name or folder. Code that comes with it is never run.

    Args:
        name: hub name, or a folder that `save_pretrained` wrote.
        pad_token: set or replace the padding token; EOS is a safe choice, since batches carry masks.
        eos_token: set or replace EOS.
        bos_token: set or replace BOS.
    """

    def __init__(
        self, name: str, pad_token: str | None = None, eos_token: str | None = None, bos_token: str | None = None
    ) -> None:
        self.name, self.pad_token, self.eos_token, self.bos_token = name, pad_token, eos_token, bos_token

    def __call__(self, texts: Callable[[], Iterator[str]], key: str, cache: Path) -> Tokenizer:
        """Load it."""
        tokenizer = load_tokenizer(self.name)
        for slot in ("pad_token", "eos_token", "bos_token"):
            token = getattr(self, slot)
            if token is not None and tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise ValueError(f"{slot} must be in the vocabulary of {self.name!r}, got {token!r}")
            if token is not None:
                setattr(tokenizer, slot, token)
        return tokenizer


class TrainedTokenizer(TokenizerBuilder):
    """A tokenizer trained on the data, without any download.

    A second run with the same data and settings loads the first one's, so its ids are the same.

    Args:
        vocab_size: upper bound of the vocabulary, special tokens included.
        kind: "bpe", byte-level: every text can be written, nothing is unknown. "word": words and punctuation with the
            space before them; rare ones become <unk>.
        files: texts to train on, one a line, instead of the training rows: give the same in every stage (SFT, DPO).
        path: folder to keep it in, instead of the data cache. If it already holds a tokenizer, that one is used.

    Raises:
        ValueError: an unknown kind, or a vocabulary too small for all bytes.
    """

    def __init__(
        self, vocab_size: int = 4096, kind: str = "bpe", files: list[str] | None = None, path: str | None = None
    ) -> None:
        integer("vocab_size", vocab_size)
        choice("kind", kind, KINDS)
        if kind == "bpe" and vocab_size < 256 + len(SPECIALS):
            raise ValueError(
                f"vocab_size must be at least {256 + len(SPECIALS)} (all bytes and special tokens) for kind 'bpe', got "
                f"{vocab_size}"
            )
        self.vocab_size, self.kind, self.files, self.path = vocab_size, kind, files, path

    def __call__(self, texts: Callable[[], Iterator[str]], key: str, cache: Path) -> Tokenizer:
        """Load it from the cache, or train it and keep it there."""
        folder = Path(self.path).expanduser() if self.path else cache / "tokenizers" / self._key(key)
        if not (folder / "tokenizer.json").is_file():
            self._train(texts if self.files is None else self._lines, folder)
        return load_tokenizer(str(folder))

    def _key(self, data: str) -> str:
        if self.files is not None:
            data = hashlib.sha256(b"".join(Path(f).read_bytes() for f in self.files)).hexdigest()
        return hashlib.sha256(json.dumps([1, data, self.vocab_size, self.kind]).encode()).hexdigest()[:20]

    def _lines(self) -> Iterator[str]:
        for name in self.files or ():
            with open(name, encoding="utf-8") as file:
                yield from file

    def _train(self, texts: Callable[[], Iterator[str]], folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        core = _untrained(self.kind)
        core.train_from_iterator(texts(), trainer=_trainer(self.kind, self.vocab_size))
        core.post_processor = _bos_in_front(core)
        create_folder(folder, PreTrainedTokenizerFast(tokenizer_object=core, **SPECIALS).save_pretrained)


def check_tokenizer(tokenizer: Tokenizer, *, needs_eos: bool) -> None:
    """Raise ValueError for a tokenizer without padding token or, where it is appended, without EOS."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if needs_eos and tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {name!r} must have an EOS token for eos='append', got none. Name one: tokenizer: {{class_path: "
            "PretrainedTokenizer, init_args: {name: ..., eos_token: ...}}, or set eos: keep."
        )
    if tokenizer.pad_token_id is None:
        eos = tokenizer.eos_token or "<token>"
        raise ValueError(
            f"tokenizer {name!r} must have a padding token, got none. Name one: tokenizer: {{class_path: "
            f"PretrainedTokenizer, init_args: {{name: ..., pad_token: {eos!r}}}}} (EOS is safe: batches carry masks)."
        )


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return a key of all that decides which ids a text gets."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(core.to_str()) if core is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(parts, dict):  # these two change with every padded call
        parts = {k: v for k, v in parts.items() if k not in ("padding", "truncation")}
    body = json.dumps(parts)
    rest = [
        type(tokenizer).__name__,
        sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items()),
        str(getattr(tokenizer, "chat_template", "")),
    ]
    return hashlib.sha256((body + json.dumps(rest)).encode()).hexdigest()


def _untrained(kind: str) -> FastTokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if kind == "bpe":
        core = Tokenizer(models.BPE(unk_token=None))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        return core
    core = Tokenizer(models.WordLevel(unk_token=SPECIALS["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return core


def _trainer(kind: str, vocab_size: int) -> Trainer:
    from tokenizers import pre_tokenizers, trainers

    specials = list(SPECIALS.values())
    if kind == "word":
        return trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


def _bos_in_front(core: FastTokenizer) -> TemplateProcessing:
    from tokenizers.processors import TemplateProcessing

    bos = SPECIALS["bos_token"]
    return TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))])
