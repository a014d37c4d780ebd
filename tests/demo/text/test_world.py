"""The world itself: rewards of hand-made texts, the data distribution, the enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from pl_prefopt.demo.text.world import SIGNS, WORDS, SentimentWorld, chain

WORLD = SentimentWorld(max_words=3)


@pytest.mark.parametrize(
    ("topic", "text", "reward"),
    [
        ("battery", " good", 2.0),
        ("battery", " not good", -2.0),
        ("battery", " not not good", 2.0),
        ("battery", " very good", 3.0),
        ("battery", " very very good", 3.0),
        ("battery", " not very good", -3.0),
        ("battery", " very not good", -3.0),
        ("battery", " very not", 0.0),
        ("battery", " good not", 2.0),
        ("battery", " long", 1.5),
        ("queue", " long", -1.5),
        ("queue", " not long quiet", 1.5),
        ("battery", " quiet", 0.0),
        ("battery", " very long bad", (1.5 * 1.5 - 2) / 2),
        ("battery", " good good bad", 2 / 3),
    ],
)
def test_rewards_of_hand_made_texts(topic: str, text: str, reward: float) -> None:
    assert WORLD.rewards(topic)[WORLD.index(text)] == pytest.approx(reward)
    assert WORLD.reward(WORLD.prompt(topic), text) == pytest.approx(reward)


def test_words_outside_the_language_count_for_nothing() -> None:
    assert WORLD.reward(WORLD.prompt("fan"), " really good , and not hot light") == pytest.approx((2 + 1.5 + 1.5) / 3)
    assert WORLD.reward(WORLD.prompt("fan"), " really") == 0
    with pytest.raises(ValueError, match=r"lemon.*battery"):
        WORLD.reward("a review of the lemon:", " good")


def test_other_objectives() -> None:
    by_text = {t: WORLD.index(t) for t in (" good", " very good", " very very bad", " bad bad bad")}
    brevity, restraint = (WORLD.rewards("fan", o) for o in ("brevity", "restraint"))
    assert [brevity[i] for i in by_text.values()] == [1.5, 0.0, -1.5, -1.5]
    assert [restraint[i] for i in by_text.values()] == [1.5, 0.0, -1.5, 1.5]
    with pytest.raises(ValueError, match="rudeness"):
        WORLD.rewards("fan", "rudeness")


def test_every_text_is_listed_once_and_found_again() -> None:
    texts = [WORLD.text(i) for i in range(len(WORLD))]
    assert len(set(texts)) == len(texts) == 9 + 9**2 + 9**3
    assert all(WORLD.index(t) == i for i, t in enumerate(texts))
    for wrong in ("", " good lemon", " good good good good"):
        with pytest.raises(ValueError, match="not one to 3 words"):
            WORLD.index(wrong)


@pytest.mark.parametrize("topic", list(SIGNS))
def test_data_distribution_is_a_distribution_that_favours_no_side(topic: str) -> None:
    p = SentimentWorld().probabilities(topic)
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert abs(p @ SentimentWorld().rewards(topic)) < 0.3


def test_data_distribution_is_that_of_thechain() -> None:
    start, step, stop = chain("soup")
    g, n, v = (WORDS.index(w) for w in ("good", "not", "very"))
    p = WORLD.probabilities("soup")
    assert p[WORLD.index(" good")] == pytest.approx(start[g] * stop[g])
    expected = start[n] * (1 - stop[n]) * step[n, v] * (1 - stop[v]) * step[v, g]
    assert p[WORLD.index(" not very good")] == pytest.approx(expected)


def test_held_out_continuations_are_a_fixed_share_of_the_longer_ones() -> None:
    world = SentimentWorld()
    assert not world.held[world.lengths == 1].any()
    assert world.held[world.lengths > 1].mean() == pytest.approx(0.2, abs=0.02)
    assert np.array_equal(world.held, SentimentWorld().held)
    assert not np.array_equal(world.held, SentimentWorld(split_seed=1).held)


@pytest.mark.parametrize("options", [{"max_words": 1}, {"max_words": 6}, {"held_out": 0.0}])
def test_refusals_name_the_argument(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SentimentWorld(**options)  # type: ignore[arg-type]
