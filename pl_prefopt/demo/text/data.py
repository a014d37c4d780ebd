"""The sentiment world as a data module: files that `TextPreferenceDataModule` reads like anybody's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pl_prefopt.datamodules.files.cache import generated_folder
from pl_prefopt.datamodules.text import TextPreferenceDataModule
from pl_prefopt.datamodules.tokenizers import SPECIALS, TokenizerBuilder
from pl_prefopt.demo.text.pairs import Recipe, write_splits
from pl_prefopt.demo.text.world import PROMPT, SIGNS, WORDS, SentimentWorld
from pl_prefopt.utilities.configurable import to_config
from pl_prefopt.utilities.files import create_folder

FORMAT = 2


class SentimentTokenizer(TokenizerBuilder):
    """One token per word, with the space before it; the vocabulary is that of the world and never changes."""

    def __call__(self, texts: Callable[[], Iterator[str]], key: str, cache: Path) -> Any:
        """Build it; nothing is trained."""
        return sentiment_tokenizer()


def sentiment_tokenizer() -> Any:
    """The tokenizer of the sentiment world: <pad> 0, <bos> 1, <eos> 2, <unk> 3, then the words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    start, end = PROMPT.split(" {}")
    pieces = [start.split()[0], *(f" {w}" for w in (*start.split()[1:], *SIGNS, *WORDS)), end]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIALS.values(), *pieces])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIALS)


class SentimentDataModule(TextPreferenceDataModule):
    """Rows of the sentiment world, generated once per setting and seed.

    Splits: train; val and test/continuations, made of continuations that no training row shows; test/topics, about
    topics that no training pair is about. Evaluation rows are labelled by the reward itself, without noise or bias.

    Args:
        labels: False gives the supervised corpus: rows of two draws from the data distribution, the first as "chosen".
        rows: training rows.
        eval_rows: rows of each evaluation set.
        temperature: of the Bradley-Terry labels, P(a over b) = sigmoid((R_a - R_b) / temperature); 0 is noise-free.
        flip: share of labels that are swapped, in [0, 1].
        length_bias: spurious preference for length: R grows by this much per word when training labels are drawn, not
            in evaluation.
        similarity: share of pairs that differ in one word only, in [0, 1].
        list_size: completions per row; above 2 rows are lists, best first, with graded relevance 0 to 4.
        soft_labels: add the column `preference_prob`, the true P(chosen over rejected) under noise and bias.
        weights: objective (sentiment, brevity, restraint) -> weight in R.
        margins: objectives whose rewards are added, as `chosen_margins` and `rejected_margins` (MODPO), or as `margins`
            of lists (PAMA).
        world: the language.
        batch_size: rows per micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        num_workers: worker processes per loader.
        seed: seed of rows and order.
        cache_dir: folder of generated files; None: $PL_PREFOPT_CACHE or the user's cache folder.
    """

    def __init__(
        self,
        labels: bool = True,
        rows: int = 2000,
        eval_rows: int = 500,
        temperature: float = 1.0,
        flip: float = 0.0,
        length_bias: float = 0.0,
        similarity: float = 0.0,
        list_size: int = 2,
        soft_labels: bool = False,
        weights: dict[str, float] | None = None,
        margins: list[str] | None = None,
        world: SentimentWorld = SentimentWorld(),  # noqa: B008
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        arguments = {k: to_config(v) for k, v in locals().items() if k not in ("self", "__class__")}
        recipe = Recipe(labels, rows, eval_rows, temperature, flip, length_bias, similarity, list_size, soft_labels,
                        weights or {"sentiment": 1.0}, tuple(margins or ()))  # fmt: skip
        folder = generated_folder(cache_dir, "sentiment", [FORMAT, asdict(recipe), to_config(world), seed])
        super().__init__(
            train=str(folder / "train.jsonl"),
            val=str(folder / "val.jsonl"),
            test={name: str(folder / f"test_{name}.jsonl") for name in ("continuations", "topics")},
            tokenizer=SentimentTokenizer(),
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
            reversed_scores="keep",  # labels are noisy on purpose, and rewards are true
        )
        self.save_hyperparameters(arguments, logger=False)
        self.world, self.recipe, self.folder = world, recipe, folder

    def prepare_data(self) -> None:
        """Write the files, then tokenise them."""
        self._write()
        super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open the rows; what `prepare_data` has not made is made here."""
        self._write()
        super().setup(stage)

    def _write(self) -> None:
        create_folder(self.folder, lambda work: write_splits(work, self.world, self.recipe, self.seed))
