"""Rules on texts, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pl_prefopt.demo.text.judge import SentimentJudge
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.judges import Judge, LengthJudge, NoRepeats, RegexJudge, WeightedSum, judged
from pl_prefopt.utilities.configurable import from_config, to_config

TEXTS = ["thank you, thank you", "Thank me", "no", ""]


def scores(judge: Judge, texts: list[str] = TEXTS) -> list[float]:
    return judged(judge, ["q"] * len(texts), texts).tolist()


def test_patterns_add_up_once_or_per_match() -> None:
    rewards = {"thank": 1.0, r"\bno\b": -2.0, "you$": 0.25}
    assert scores(RegexJudge(rewards)) == [1.25, 0.0, -2.0, 0.0]
    assert scores(RegexJudge(rewards, each=True)) == [2.25, 0.0, -2.0, 0.0]
    assert scores(RegexJudge(rewards, ignore_case=True)) == [1.25, 1.0, -2.0, 0.0]


def test_length_falls_off_from_the_target() -> None:
    assert scores(LengthJudge(4)) == [1.0, 0.5, 0.25, 0.0]
    assert scores(LengthJudge(2, beta=2.0, unit="characters"), ["ab", "abcd", "a"]) == [1.0, -1.0, 0.0]


def test_repeated_phrases_get_the_fixed_score() -> None:
    judge = NoRepeats(LengthJudge(1), n=2, times=2, score_of_repeats=-9.0)
    assert [judge.repeats(t) for t in ("a b a b a b", "a b c", "a")] == [3, 1, 0]
    assert scores(judge, ["a b a b", "a", "a b"]) == [-9.0, 1.0, 0.0]


def test_sums_weigh_their_judges() -> None:
    judges: list[Judge] = [LengthJudge(4), RegexJudge({"thank": 1.0})]
    assert scores(WeightedSum(judges)) == [2.0, 0.5, 0.25, 0.0]
    assert scores(WeightedSum(judges, [2.0, -1.0])) == [1.0, 1.0, 0.5, 0.0]


def test_the_demo_judge_is_the_reward_of_its_world() -> None:
    world = SentimentWorld()
    rows = range(0, len(world), 997)
    made = judged(SentimentJudge(), [world.prompt("soup")] * len(rows), [world.text(i) for i in rows])
    assert made.tolist() == pytest.approx(world.rewards("soup")[list(rows)].tolist(), abs=1e-6)
    longer = judged(SentimentJudge(length_bias=0.5), [world.prompt("soup")] * 2, [" good", " good good"])
    assert longer.tolist() == [2.5, 3.0]


def test_rules_are_plain_values() -> None:
    judge = WeightedSum([NoRepeats(RegexJudge({"a": 1.0})), SentimentJudge()], [1.0, 2.0])
    again = from_config(to_config(judge), Judge)
    assert again == judge
    assert isinstance(again, WeightedSum)
    assert scores(again.judges[0], ["b a"]) == [1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegexJudge({}), "at least one pattern"),
        (lambda: RegexJudge({"(": 1.0}), r"'\('"),
        (lambda: LengthJudge(0), "target"),
        (lambda: LengthJudge(3, beta=0.0), "beta"),
        (lambda: LengthJudge(3, unit="lines"), "'lines'"),
        (lambda: NoRepeats(LengthJudge(1), n=0), "n must"),
        (lambda: NoRepeats(LengthJudge(1), times=1), "times"),
        (lambda: WeightedSum([]), "at least one judge"),
        (lambda: WeightedSum([LengthJudge(1)], [1.0, 2.0]), "weights must be 1 numbers, one per judge"),
        (lambda: scores(SentimentJudge(), ["good"]), "'q' is not about a topic"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
