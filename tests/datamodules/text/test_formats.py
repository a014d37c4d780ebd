from __future__ import annotations

from typing import Any

import pytest

from pl_prefopt.datamodules.text.formats import parse
from pl_prefopt.utilities.rows import BadRow

USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}
GOOD, BAD = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "Go away."}


def test_standard_pair_with_and_without_prompt() -> None:
    row = parse({"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "id": 7})
    assert (row.prompt, row.completions, row.conversational) == ("The sky is", [" blue.", " green."], False)
    assert parse({"chosen": "a b", "rejected": "a c"}).prompt is None


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"prompt": [SYSTEM, USER], "chosen": "Hello!", "rejected": "Go away."},
        {
            "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "Go away."},
        },
        {
            "system": "Be kind.",
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "Go away."},
        },
        {"prompt": [SYSTEM, USER | {"tool_calls": None}], "completions": [[GOOD], [BAD]]},
    ],
    ids=["explicit", "implicit", "repeated", "text-answers", "sharegpt", "sharegpt-system", "list"],
)
def test_conversations_of_all_layouts_become_one(raw: dict[str, Any]) -> None:
    row = parse(raw)
    assert row.conversational
    assert row.prompt == [SYSTEM, USER]
    assert row.completions == [[GOOD], [BAD]]


def test_text_prompt_beside_whole_conversations() -> None:
    row = parse({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]})
    assert row.prompt == [USER]
    assert row.completions == [[GOOD], [BAD]]


def test_implicit_prompt_is_cut_at_whole_turns() -> None:
    shared = {"role": "assistant", "content": "Hello"}
    longer = {"role": "assistant", "content": "Hello there"}
    row = parse({"chosen": [USER, shared], "rejected": [USER, longer]})
    assert row.prompt == [USER]
    assert row.completions == [[shared], [longer]]
    deeper = parse({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER]})
    assert deeper.prompt == [USER, GOOD]
    assert deeper.completions == [[USER, GOOD], [USER]]


def test_tools_and_template_arguments_are_kept() -> None:
    raw = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "tools": [{"name": "f"}]}
    row = parse(raw | {"chat_template_kwargs": {"deep": True}})
    assert row.tools == [{"name": "f"}]
    assert row.template_kwargs == {"deep": True}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert parse(raw | {"chosen": [call]}).completions[0] == [call]


def test_numbers_of_pairs_and_lists() -> None:
    raw = {"prompt": "p", "chosen": "a", "rejected": "b", "weight": 2, "margin": "-0.5", "preference_prob": 0.75}
    assert parse(raw).numbers == {"weight": 2.0, "margin": -0.5, "preference_prob": 0.75}
    assert parse(raw | {"chosen_margins": [1, 2], "rejected_margins": [3, 4]}).numbers["margins"] == [[1, 2], [3, 4]]
    assert parse(raw | {"margins": [0.5, 1.5]}).numbers["margins"] == [[0.5], [1.5]]


def test_lists_come_best_first_with_their_numbers() -> None:
    raw = {"prompt": "p", "completions": ["a", "b", "c"], "rewards": [0.1, 0.9, 0.5], "ranks": [1, 2, 3]}
    row = parse(raw)
    assert row.completions == ["b", "c", "a"]
    assert row.numbers == {"relevance": [0.9, 0.5, 0.1], "ranks": [2, 3, 1]}
    assert parse({"prompt": "p", "completions": ["a", "b"], "targets": [0.2, 0.8]}).completions == ["b", "a"]
    assert parse({"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}).completions == ["b", "a"]


def test_a_pair_is_never_turned_round_by_its_numbers() -> None:
    assert parse({"prompt": "p", "chosen": "a", "rejected": "b", "relevance": [0, 1]}).completions == ["a", "b"]


def test_columns_are_renamed() -> None:
    row = parse({"q": "p", "yes": "a", "no": "b"}, {"prompt": "q", "chosen": "yes", "rejected": "no"})
    assert (row.prompt, row.completions) == ("p", ["a", "b"])


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("raw", "reason", "words"),
    [
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "missing_column", ["'chosen'", "mean 'choosen'"]),
        ({"prompt": "p", "chosen": "a"}, "missing_column", ["'rejected'", "only 'prompt', 'chosen'"]),
        (PAIR | {"rejected": None}, "missing_column", ["'rejected'"]),
        (PAIR | {"chosen": "  \n"}, "empty_completion", ["'chosen'", r"'  \n'", "on_bad_row"]),
        (PAIR | {"rejected": ""}, "empty_completion", ["'rejected'"]),
        ({"prompt": "p", "rejected": [GOOD | {"content": ""}], "chosen": [GOOD]}, "empty_completion", ["'rejected'"]),
        (PAIR | {"prompt": " "}, "empty_prompt", ["'prompt'", "allow_empty_prompt"]),
        ({"prompt": [USER | {"content": ""}], "chosen": [GOOD], "rejected": [BAD]}, "empty_prompt", ["'prompt'"]),
        (PAIR | {"rejected": "a"}, "identical", ["'rejected'", "the same as chosen, 'a'"]),
        ({"prompt": "p", "completions": ["a", "a", "a"]}, "identical", ["different"]),
        ({"prompt": [USER], "chosen": [SYSTEM, GOOD], "rejected": [BAD]}, "prompt_not_prefix", ["'chosen'", "Be kind"]),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "no_prompt", ["common first turn"]),
        (PAIR | {"weight": float("nan")}, "bad_number", ["'weight'", "nan", ">= 0"]),
        (PAIR | {"weight": -1}, "bad_number", ["'weight'", "-1"]),
        (PAIR | {"weight": "heavy"}, "bad_number", ["'weight'", "'heavy'"]),
        (PAIR | {"weight": True}, "bad_number", ["'weight'", "True"]),
        (PAIR | {"margin": float("inf")}, "bad_number", ["'margin'", "inf"]),
        (PAIR | {"preference_prob": 1.5}, "bad_number", ["'preference_prob'", "1.5", "[0, 1]"]),
        (PAIR | {"margins": [[1, 2], [3]]}, "bad_length", ["'margins'", "same number"]),
        (PAIR | {"margins": [[1, float("nan")], [3, 4]]}, "bad_number", ["'margins[0][1]'"]),
        ({"prompt": "p", "completions": ["a"]}, "bad_type", ["'completions'", "at least two"]),
        ({"prompt": "p", "completions": ["a", "b"], "relevance": [1]}, "bad_length", ["'relevance'", "2 numbers"]),
        (PAIR | {"chosen": 5}, "bad_type", ["'chosen'", "5"]),
        (PAIR | {"chosen": [GOOD]}, "bad_type", ["text beside turns"]),
        ({"prompt": [{"text": "x"}], "chosen": "a", "rejected": "b"}, "bad_type", ["'prompt[0]'", "role, content"]),
    ],
)  # fmt: skip
def test_bad_rows_say_what_is_wrong(raw: dict[str, Any], reason: str, words: list[str]) -> None:
    with pytest.raises(BadRow) as caught:
        parse(raw)
    assert caught.value.reason == reason
    for word in words:
        assert word in str(caught.value)


def test_a_renamed_column_that_is_not_there() -> None:
    with pytest.raises(BadRow, match=r"'answer'.*columns.chosen.*mean 'answers'"):
        parse({"answers": "a", "rejected": "b"}, {"chosen": "answer"})


def test_empty_prompt_can_be_allowed() -> None:
    assert parse(PAIR | {"prompt": ""}, allow_empty_prompt=True).prompt == ""
