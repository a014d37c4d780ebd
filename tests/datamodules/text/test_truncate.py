from __future__ import annotations

from typing import Any

import pytest

from pl_prefopt.datamodules.text.tokenize import Encoded
from pl_prefopt.datamodules.text.truncate import Dropped, Truncation
from pl_prefopt.utilities.rows import BadRow

BOS, EOS = 1, 2


def row(prompt: int, chosen: int, rejected: int) -> Encoded:
    """A row of the given lengths: prompt 100, 101, ... behind BOS; completions 200.. and 300.., with EOS."""
    return Encoded(
        [BOS, *range(100, 100 + prompt - 1)],
        [[*range(200, 200 + chosen - 1), EOS], [*range(300, 300 + rejected - 1), EOS]],
    )


def cut(have: Encoded, max_length: int, max_prompt: Any = None, **policies: Any) -> Encoded:
    return Truncation(max_length, max_prompt, **policies)(have, BOS)


def test_rows_that_fit_stay_as_they_are() -> None:
    have = row(6, 4, 3)
    assert cut(have, 10) == have


def test_prompt_gives_way_first_and_keeps_bos() -> None:
    out = cut(row(8, 4, 3), 10)
    assert out.prompt == [BOS, 102, 103, 104, 105, 106]
    assert out.completions == row(8, 4, 3).completions
    assert out.events == {"prompt_truncated"}
    assert cut(row(8, 4, 3), 10, prompt="keep_start").prompt == [BOS, 100, 101, 102, 103, 104]


def test_then_the_completions_and_eos_is_lost_where_they_are_cut() -> None:
    out = cut(row(8, 9, 3), 10)
    assert len(out.prompt) == 5
    assert out.completions == [[200, 201, 202, 203, 204], [300, 301, EOS]]
    assert out.events == {"prompt_truncated", "completion_truncated"}
    assert cut(row(3, 9, 3), 10, completion="keep_end").completions[0] == [202, 203, 204, 205, 206, 207, EOS]
    assert cut(row(3, 9, 3), 10).prompt == row(3, 1, 1).prompt


def test_explicit_prompt_limit_always_holds() -> None:
    assert cut(row(6, 2, 3), 100, 4).prompt == [BOS, 102, 103, 104]
    assert cut(row(6, 20, 3), 12, 4).completions[0] == list(range(200, 208))


@pytest.mark.parametrize("seed", range(30))
def test_result_always_fits_and_is_never_empty_or_equal(seed: int) -> None:
    import random

    rng = random.Random(seed)
    have = row(*(rng.randint(2, 30) for _ in range(3)))
    out = cut(have, rng.randint(3, 40))
    limit = max(len(out.prompt) + len(c) for c in out.completions)
    assert out.prompt
    assert all(out.completions)
    assert out.completions[0] != out.completions[1]
    assert limit <= 40


@pytest.mark.parametrize(("policy", "key"), [("prompt", "prompt_too_long"), ("completion", "completion_too_long")])
def test_drop_and_error(policy: str, key: str) -> None:
    have = row(8, 9, 3)
    with pytest.raises(Dropped, match=key):
        cut(have, 10, **{policy: "drop"})
    with pytest.raises(BadRow, match=f"'{policy}' must be at most 5 tokens .*, got . tokens") as caught:
        cut(have, 10, **{policy: "error"})
    assert caught.value.reason == key


def test_pairs_that_become_equal_are_dropped_by_name() -> None:
    have = Encoded([BOS, 5], [[7, 8, 9, 10, EOS], [7, 8, 9, 11, EOS]])
    with pytest.raises(Dropped, match="identical_after_truncation"):
        cut(have, 5)
    with pytest.raises(Dropped, match="identical_tokens"):
        cut(Encoded([BOS], [[7, EOS], [7, EOS]]), 50)
    assert cut(have, 5, completion="keep_end").completions == [[9, 10, EOS], [9, 11, EOS]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "max_length must be an integer >= 2, got 0"),
        ({"max_length": 1.5}, "max_length must be an integer >= 2, got 1.5"),
        (
            {"max_length": 10, "max_prompt_length": 10},
            "max_prompt_length must be below max_length.*, got 10 with max_length 10",
        ),
        ({"prompt": "left"}, "truncation.prompt must be one of drop, .*got 'left'"),
        ({"completion": "keep_ends"}, "Did you mean 'keep_end'"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Truncation(**options)
