"""R3 against explicit loops over logits, and its filter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch

from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.judges import R3, judged, r3_filter, r3_scores, r3_weights
from tests.tiny import QWEN2, nudge, tiny_lm

ANSWERS = {"a review of the soup:": " hot very good", "a review of the film:": " long bad"}
SOUP, FILM = ANSWERS
CHAINS = [" not very", " cheap<eos> bad", " light light<eos> good hot"]


def judge(folder: Path, answers: Any = ANSWERS, **options: Any) -> R3:
    sentiment_tokenizer().save_pretrained(folder)
    made = R3(tiny_lm(), str(folder), answers, end_of_thought="<eos>", batch_size=2, device="cpu", **options)
    nudge(made.networks[0].requires_grad_(True), scale=0.6)
    return made


def ids(text: str) -> list[int]:
    return sentiment_tokenizer()(text, add_special_tokens=False).input_ids


def rows_of(made: R3, question: str, chain: str) -> list[tuple[float, int]]:
    """(log-probability, rank) of the answer's tokens after a chain, from the logits of one row."""
    context, answer = ids(question) + ids(chain) + [2], ids(ANSWERS[question])
    with torch.no_grad():
        logits = made.networks[0](input_ids=torch.tensor([context + answer])).logits[0].double()
    out = []
    for j, token in enumerate(answer):
        row = logits[len(context) + j - 1].tolist()
        norm = math.log(sum(math.exp(v) for v in row))
        out.append((row[token] - norm, sum(v > row[token] for v in row) + 1))
    return out


@pytest.mark.parametrize("weights", ["variance", "constant"])
def test_rewards_are_those_of_the_definition(weights: str, tmp_path: Path) -> None:
    made = judge(tmp_path, weights=weights)
    conditions, samples = [SOUP, FILM, SOUP, FILM, SOUP], [CHAINS[0], CHAINS[1], CHAINS[1], CHAINS[0], CHAINS[2]]
    scores = judged(made, conditions, samples).tolist()
    for question in (SOUP, FILM):
        rows = [i for i, c in enumerate(conditions) if c == question]
        logps = [[v for v, _ in rows_of(made, question, samples[i].split("<eos>")[0])] for i in rows]
        plain = [v for v, _ in rows_of(made, question, "")]
        sigma = [pstdev(column) for column in zip(*logps, strict=True)]
        w = [s / sum(sigma) for s in sigma] if weights == "variance" else [1.0] * len(sigma)
        for i, row in zip(rows, logps, strict=True):
            assert scores[i] == pytest.approx(sum(a * (b - c) for a, b, c in zip(w, row, plain, strict=True)), abs=1e-5)
    assert len({round(s, 4) for s in scores}) == 5


def test_constant_weights_are_the_gain_and_agreeing_tokens_add_nothing() -> None:
    logps, masked = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -4.0, -3.0]]), torch.tensor([-2.0, -2.5, -9.0])
    assert r3_scores(logps, masked, torch.ones(3)).tolist() == [7.5, 5.5]
    assert r3_weights(logps).tolist() == [0.0, 1.0, 0.0]
    assert r3_scores(logps, masked, r3_weights(logps)).tolist() == [0.5, -1.5]
    assert r3_weights(logps[:1].expand(3, -1)).tolist() == [0.0, 0.0, 0.0]


def test_a_chain_without_influence_scores_zero(tmp_path: Path) -> None:
    made = judge(tmp_path, masked=" cheap", weights="constant")
    made.batch_size = 3
    assert judged(made, [SOUP] * 2, [" cheap<eos> whatever", CHAINS[0]])[0] == 0.0


def test_answers_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in ANSWERS.items()))
    expected = judged(judge(tmp_path), [FILM] * 3, CHAINS)
    assert torch.equal(judged(judge(tmp_path, str(file)), [FILM] * 3, CHAINS), expected)
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="row 1: fields 'prompt' and 'answer' must be"):
        R3(tiny_lm(), str(tmp_path), str(file)).score(["a"] * 2, ["b"] * 2)


def test_the_filter_asks_for_reach_and_for_difference(tmp_path: Path) -> None:
    made = judge(tmp_path)
    result = r3_filter(made, {SOUP: CHAINS, FILM: CHAINS}, max_rank=1000, worst=0.5, drop=0.5)
    for question, r in result.items():
        rows = [rows_of(made, question, c.split("<eos>")[0]) for c in CHAINS]
        count = math.ceil(len(rows[0]) / 2)
        ranks = [sum(sorted((rank for _, rank in row), reverse=True)[:count]) / count for row in rows]
        assert r.rank == min(ranks)
        spreads = [pstdev(v for v, _ in column) for column in zip(*rows, strict=True)]
        assert r.spread == pytest.approx(max(spreads), abs=1e-5)
    assert [q for q, r in result.items() if r.kept] == [max(result, key=lambda q: result[q].spread)]
    near = min(r.rank for r in result.values())
    reached = r3_filter(made, {SOUP: CHAINS, FILM: CHAINS}, max_rank=near, worst=0.5, drop=0.0)
    assert [q for q, r in reached.items() if r.kept] == [q for q, r in result.items() if r.rank == near]
    assert len({r.rank for r in result.values()}) == 2


def test_bad_input_is_refused(tmp_path: Path) -> None:
    made = judge(tmp_path)
    with pytest.raises(ValueError, match="group of at least two"):
        made.score([SOUP, FILM], CHAINS[:2])
    with pytest.raises(ValueError, match=r"answers must hold .* got no answer for 'a review of the fan:'"):
        made.score(["a review of the fan:"] * 2, CHAINS[:2])
    with pytest.raises(ValueError, match="weights must be one of"):
        R3(tiny_lm(), "", {}, weights="sigma")
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(2,\)"):
        r3_scores(torch.zeros(2, 3), torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="least weight -1"):
        r3_scores(torch.zeros(2, 3), torch.zeros(3), -torch.ones(3))
    for options in ({"max_rank": 0.5}, {"max_rank": 2, "worst": 0.0}, {"max_rank": 2, "drop": 1.0}):
        with pytest.raises(ValueError, match="must lie in"):
            r3_filter(made, {SOUP: CHAINS}, **options)
    with pytest.raises(ValueError, match="at least two per question, got 1"):
        r3_filter(made, {SOUP: CHAINS[:1]}, max_rank=2)


def test_the_policy_of_a_config_is_a_plain_value(tmp_path: Path) -> None:
    from pl_prefopt.judges import Judge
    from pl_prefopt.utilities.configurable import from_config, to_config

    made = R3(tiny_lm(config=QWEN2), str(tmp_path), {"q": "a"})
    assert from_config(to_config(made), Judge) == made
