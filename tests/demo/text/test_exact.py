"""Exact sums against an independent loop that asks the model for one text at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.demo.text.exact import (
    Enumeration,
    data_enumeration,
    enumerate_policy,
    frontier,
    measure,
    sample,
    tilted,
)
from pl_prefopt.demo.text.world import WORDS, SentimentWorld
from tests.tiny import nudge, tiny_lm

WORLD = SentimentWorld(max_words=2)
TOPICS = ("soup", "queue")
TOKENIZER = sentiment_tokenizer()


def network(seed: int) -> Any:
    torch.set_num_threads(1)
    made = tiny_lm()()
    nudge(made, seed=seed)
    return made


POLICY, REFERENCE = network(1), network(2)


def loop_logp(model: Any, topic: str, text: str) -> tuple[float, float]:
    """(restricted, free) log-probability, word by word, each from its own forward pass."""
    words = {w: TOKENIZER.convert_tokens_to_ids(f" {w}") for w in WORDS}
    ids = TOKENIZER(WORLD.prompt(topic))["input_ids"]
    chain = [words[w] for w in text.split()]
    if len(chain) < WORLD.max_words:
        chain.append(TOKENIZER.eos_token_id)
    restricted = free = 0.0
    for i, token in enumerate(chain):
        with torch.no_grad():
            probs = model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        may = [*words.values()] + ([TOKENIZER.eos_token_id] if i else [])
        restricted += math.log(float(probs[token] / probs[may].sum()))
        free += math.log(float(probs[token]))
        ids = [*ids, token]
    return restricted, free


@pytest.fixture(scope="module")
def both() -> tuple[Enumeration, Enumeration]:
    return tuple(enumerate_policy(m, TOKENIZER, WORLD, TOPICS) for m in (POLICY, REFERENCE))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def looped() -> dict[str, list[list[tuple[float, float]]]]:
    texts = [WORLD.text(i) for i in range(len(WORLD))]
    models = {"policy": POLICY, "reference": REFERENCE}
    return {name: [[loop_logp(m, t, text) for text in texts] for t in TOPICS] for name, m in models.items()}


def test_probabilities_sum_to_one(both: tuple[Enumeration, Enumeration]) -> None:
    for found in both:
        assert found.logps.exp().sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_longer_languages_sum_to_one_too() -> None:
    found = enumerate_policy(POLICY, TOKENIZER, SentimentWorld(max_words=3), ("fan",))
    assert found.logps.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_every_probability_equals_the_loop(both: tuple[Enumeration, Enumeration], looped: Any) -> None:
    for found, name in zip(both, looped, strict=True):
        expected = torch.tensor(looped[name], dtype=torch.float64)
        assert torch.allclose(found.logps, expected[..., 0], atol=1e-5)
        assert torch.allclose(found.leak, 1 - expected[..., 1].exp().sum(1), atol=1e-6)


def test_expectations_equal_the_loop(both: tuple[Enumeration, Enumeration], looped: Any) -> None:
    values = measure(WORLD, TOPICS, *both)
    reward = kl = back = entropy = length = 0.0
    for c, topic in enumerate(TOPICS):
        for i in range(len(WORLD)):
            a, b = looped["policy"][c][i][0], looped["reference"][c][i][0]
            reward += math.exp(a) * WORLD.reward(WORLD.prompt(topic), WORLD.text(i)) / 2
            kl += math.exp(a) * (a - b) / 2
            back += math.exp(b) * (b - a) / 2
            entropy -= math.exp(a) * a / 2
            length += math.exp(a) * len(WORLD.text(i).split()) / 2
    names = ("reward", "kl", "kl_from_reference", "entropy", "length")
    assert [values[n] for n in names] == pytest.approx([reward, kl, back, entropy, length], abs=1e-5)
    assert min(kl, back) > 0.01


def test_a_policy_has_no_distance_to_itself(both: tuple[Enumeration, Enumeration]) -> None:
    values = measure(WORLD, TOPICS, both[0], both[0])
    assert values["kl"] == values["kl_from_reference"] == 0


def test_the_data_distribution_in_the_same_form() -> None:
    values = measure(WORLD, TOPICS, *(data_enumeration(WORLD, TOPICS),) * 2)
    expected = sum(float(WORLD.probabilities(t) @ WORLD.rewards(t)) for t in TOPICS) / 2
    assert values["reward"] == pytest.approx(expected)


def test_no_policy_lies_above_the_frontier(both: tuple[Enumeration, Enumeration]) -> None:
    reference = both[1]
    curve = frontier(WORLD, TOPICS, reference, [0.2, 0.5, 1.0, 5.0])
    assert all(a > b for (_, a), (_, b) in itertools.pairwise(curve))
    assert all(a > b for (a, _), (b, _) in itertools.pairwise(curve))
    noise = torch.randn(20, *reference.logps.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature, (kl, reward) in zip([0.2, 0.5, 1.0, 5.0], curve, strict=True):
        for z in noise:
            other = measure(WORLD, TOPICS, tilted(reference, z, 1.0), reference)
            assert other["reward"] - temperature * other["kl"] < reward - temperature * kl


def test_samples_have_the_right_rates(both: tuple[Enumeration, Enumeration]) -> None:
    draws = (torch.arange(4000) + 0.5).repeat(2, 1) / 4000
    texts = sample(WORLD, both[0], draws)
    share = sum(t == " good" for t in texts[0]) / 4000
    assert share == pytest.approx(both[0].logps[0].exp()[WORLD.index(" good")].item(), abs=1e-3)
    assert set(texts[1]) <= {WORLD.text(i) for i in range(len(WORLD))}


def test_words_of_several_tokens_are_refused() -> None:
    def letters(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    letters.eos_token_id = 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="as one token"):
        enumerate_policy(POLICY, letters, WORLD, TOPICS)
