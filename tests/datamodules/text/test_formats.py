from __future__ import annotations

import json
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


# ---- read as meant, or refused -------------------------------------------------------------------------------------

LIST = {"prompt": "p", "completions": ["a", "b", "c"]}


def test_scores_and_ranks_decide_which_completion_is_best() -> None:
    assert parse(LIST | {"scores": [0.1, 0.9, 0.5]}).completions == ["b", "c", "a"]
    assert parse(LIST | {"scores": "[0.1, 0.9, 0.5]"}).numbers == {"relevance": [0.9, 0.5, 0.1]}
    assert parse(LIST | {"ranks": [2, 1, 3]}).completions == ["b", "a", "c"]
    assert parse(LIST | {"scores": [1, 1, 1]}).events == {"tied_list"}
    assert parse(LIST | {"ranks": [2, 1, 3], "scores": [5, 9, 1]}).completions == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"scores": [1, 3, 2], "ranks": [1, 2, 3]}, "'ranks' must be in agreement with 'relevance'"),
        ({"scores": [1, 3, 2], "rewards": [3, 1, 2]}, "'scores' must be in agreement with 'rewards'"),
        ({"relevance": [1, 3, 2], "targets": [0.5, 0.2, 0.3]}, "'targets' must be in agreement with 'relevance'"),
        ({"scores": [1, 2]}, "'relevance' must be a list of 3 numbers"),
        ({"chosen": "a", "rejected": "b"}, "'completions' must be alone"),
    ],
)
def test_contradictions_in_lists_are_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        parse(LIST | columns)


@pytest.mark.parametrize("name", ["score", "rank", "labels", "best", "chosen_index", "human_preference"])
def test_a_column_that_may_order_a_list_stops(name: str) -> None:
    with pytest.raises(BadRow, match=f"'scores' must be one column, got no such column, but '{name}'.*ranks"):
        parse(LIST | {name: [2, 1, 3]})
    assert parse(LIST | {name: [2, 1, 3], "rewards": [3, 2, 1]}).completions == ["a", "b", "c"]
    assert parse(LIST | {name: [2, 1, 3]}, {"ranks": name}).completions == ["b", "a", "c"]
    assert parse(LIST | {"ratings": [2, 1, 3]}).completions == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"),
        ("chosen_rewards", "rejected_rewards"),
    ],
)  # fmt: skip
def test_pairs_whose_scores_say_the_opposite_are_refused(chosen: str, rejected: str) -> None:
    assert parse(PAIR | {chosen: 2.0, rejected: "1.5"}).completions == ["a", "b"]
    assert parse(PAIR | {chosen: 1, rejected: 1}).completions == ["a", "b"]
    with pytest.raises(BadRow, match=f"'{chosen}' must be not worse than '{rejected}', got 1, beside"):
        parse(PAIR | {chosen: 1, rejected: 1.5})
    with pytest.raises(BadRow, match="'scores' must be highest for chosen"):
        parse(PAIR | {"scores": [1, 2]})


@pytest.mark.parametrize("name", ["question", "instruction", "query", "input"])
def test_the_prompt_may_have_another_plain_name(name: str) -> None:
    row = parse({name: "Why?", "chosen": "The sky", "rejected": "The sea", "input" if name != "input" else "query": ""})
    assert (row.prompt, row.events) == ("Why?", {f"prompt_from_{name}"})
    assert parse({"prompt": "p", name: "Why?", "chosen": "a", "rejected": "b"}).prompt == "p"


def test_two_columns_that_may_be_the_prompt_stop() -> None:
    with pytest.raises(BadRow, match=r"'prompt' must be one column, got no such column, but 'instruction' and 'input'"):
        parse({"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"})
    for name in ("Prompt", "context", "user_prompt", "chat-history", "messages"):
        with pytest.raises(BadRow, match=f"'prompt' must be one column, got no such column, but '{name}'"):
            parse({name: "Add.", "chosen": "a b", "rejected": "a c"})
    assert parse({"chosen": "a b", "rejected": "a c", "prompt_id": "x", "messages": None}).prompt is None
    with pytest.raises(BadRow, match="'prompt' must be text or a list of turns, got null"):
        parse({"prompt": None, "chosen": "a b", "rejected": "a c"})


def test_the_system_column_is_used() -> None:
    row = parse(PAIR | {"system": "Be kind."})
    assert (row.prompt, row.events) == ("Be kind.\n\np", {"system_before_prompt"})
    turns = {"chosen": [GOOD], "rejected": [BAD], "system": "Be kind."}
    assert parse({"prompt": [USER], **turns}).prompt == [SYSTEM, USER]
    assert parse({"prompt": [SYSTEM, USER], **turns}).prompt == [SYSTEM, USER]
    assert parse({**turns, "chosen": [USER, GOOD], "rejected": [USER, BAD]}).prompt == [SYSTEM, USER]
    assert parse(PAIR | {"system": "42"}).prompt == "42\n\np"
    assert parse(PAIR | {"system_prompt": "Be kind."}).prompt == "Be kind.\n\np"
    with pytest.raises(BadRow, match="'system_prompt' must be in agreement with 'system'"):
        parse(PAIR | {"system_prompt": "Be kind.", "system": "Be rude."})
    with pytest.raises(BadRow, match="'system' must be absent, or equal to the system turn"):
        parse({"prompt": [SYSTEM | {"content": "Be rude."}, USER], **turns})
    with pytest.raises(BadRow, match="'system' must be absent, got text, but no prompt"):
        parse({"chosen": "a b", "rejected": "a c", "system": "Be kind."})


def test_turns_written_as_text_are_turns() -> None:
    import numpy as np

    wanted = parse({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    for write in (str, json.dumps):
        assert parse({"prompt": write([USER]), "chosen": write([GOOD]), "rejected": write([BAD])}) == wanted
    assert parse({"prompt": [USER], "chosen": str(np.array([GOOD])), "rejected": [BAD]}) == wanted
    for text in (str(np.array([USER, GOOD])), repr(np.array([GOOD])), str([GOOD])[:-2]):
        with pytest.raises(BadRow, match=r"'chosen' must be a list of turns, got a conversation written as text"):
            parse({"prompt": [USER], "chosen": text, "rejected": [BAD]})
    assert parse(PAIR | {"chosen": "[{] is no turn"}).completions[0] == "[{] is no turn"


def test_tools_and_template_arguments_may_be_json_text() -> None:
    raw = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    row = parse(raw | {"tools": '[{"name": "f"}]', "chat_template_kwargs": '{"deep": true}'})
    assert (row.tools, row.template_kwargs) == ([{"name": "f"}], {"deep": True})
    for tools in ("none at all", ["f"], {"name": "f"}):
        with pytest.raises(BadRow, match="'tools' must be a list of objects that describe functions"):
            parse(raw | {"tools": tools})


def test_text_parts_of_a_turn_are_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert parse({"prompt": [USER], "chosen": [GOOD | {"content": parts}], "rejected": [BAD]}).completions[0] == [GOOD]
    for content in ([*parts, {"type": "image", "url": "x"}], 5, {"text": "x"}):
        with pytest.raises(BadRow, match=r"'chosen\[0\].content' must be text, or a list of parts"):
            parse({"prompt": [USER], "chosen": [GOOD | {"content": content}], "rejected": [BAD]})


@pytest.mark.parametrize("turn", [{"role": "usr", "content": "Hi"}, {"from": "bing", "value": "Hi"}])
def test_unknown_roles_are_refused(turn: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=r"'prompt\[0\].role' must be one of system, developer, user, assistant.*human"):
        parse({"prompt": [turn], "chosen": [GOOD], "rejected": [BAD]})


@pytest.mark.parametrize("text", ["\u200b\u200b", "\ufeff", "\x00\x07", "\u2800\u3164", "\u00a0\u2003", "\u00ad\u0301"])
def test_completions_that_nobody_can_see_are_empty(text: str) -> None:
    with pytest.raises(BadRow, match="at least one visible character"):
        parse(PAIR | {"chosen": text})
    assert parse(PAIR | {"chosen": f"{text}é"}).completions[0] == f"{text}é"


@pytest.mark.parametrize("raw", [PAIR | {"chosen": "a\ud800"}, PAIR | {"prompt": [USER | {"content": "\udfff"}]}])
def test_lone_surrogates_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=r"must be valid Unicode text, got the lone surrogate"):
        parse(raw)


@pytest.mark.parametrize("value", [10**400, 1e39, -1e39, 10**9000], ids=["integer", "high", "low", "digits"])
def test_numbers_beyond_float32_are_refused(value: float) -> None:
    with pytest.raises(BadRow, match=r"'margin' must be a (finite )?number"):
        parse(PAIR | {"margin": value})


def test_null_is_called_null() -> None:
    with pytest.raises(BadRow, match="'chosen' must be text, a turn, or a list of turns, got null"):
        parse(PAIR | {"chosen": None})
    with pytest.raises(BadRow, match="'chosen' must be a column, got only 'conversations', 'rejected'"):
        parse({"conversations": [USER], "rejected": BAD})
