"""The front of two objectives: what MODPO's loss asks for, the figure, and a small run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pl_prefopt.demo.__main__ import main
from pl_prefopt.demo.text.exact import data_enumeration
from pl_prefopt.demo.text.pareto import BETA, PAIR, TEMPERATURE, best_front
from pl_prefopt.demo.text.world import TOPICS, SentimentWorld

WORLD = SentimentWorld(max_words=2)


def test_the_front_is_where_the_loss_on_all_pairs_is_stationary() -> None:
    """At pi, sigmoid of the MODPO margin is the probability of the label, for every pair of continuations."""
    weight, spent = 0.3, []
    for topic in TOPICS:
        s, m = (WORLD.rewards(topic, name) for name in PAIR)
        start = np.log(WORLD.probabilities(topic))
        best = start + (weight * s / TEMPERATURE + (1 - weight) * m) / BETA
        r = best - np.log(np.exp(best).sum()) - start
        margin = (BETA * r - (1 - weight) * m) / weight
        labels = 1 / (1 + np.exp(-(s[:, None] - s[None, :]) / TEMPERATURE))
        np.testing.assert_allclose(1 / (1 + np.exp(-(margin[:, None] - margin[None, :]))), labels, atol=1e-10)
        spent.append(float((np.exp(start + r) * r).sum()))
    found = best_front(WORLD, data_enumeration(WORLD, tuple(TOPICS)), [weight])[0]
    assert found["kl"] == pytest.approx(np.mean(spent), rel=1e-9)


def test_more_weight_gives_more_of_that_objective() -> None:
    rows = best_front(WORLD, data_enumeration(WORLD, tuple(TOPICS)), [0.1, 0.5, 0.9])
    assert rows[0]["sentiment"] < rows[1]["sentiment"] < rows[2]["sentiment"]
    assert rows[0]["restraint"] > rows[2]["restraint"]


def test_it_trains_every_point_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    world = ("--data.world=pl_prefopt.demo.text.world.SentimentWorld", "--data.world.max_words=3")
    small = ("--data.rows=32", "--data.eval_rows=8", "--trainer.max_steps=1", "--data.batch_size=16")
    main(["pareto", "--weights", "0.4", "--out", "front", *world, *small])
    found = json.loads(Path("front/pareto.json").read_text())
    assert list(found) == ["before", "sentiment alone", "restraint alone", "MODPO", "PAMA", "optimum"]
    assert Path("front/pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert all(found[name][0]["kl"] > 0 for name in ("sentiment alone", "restraint alone", "MODPO", "PAMA"))
    assert found["before"][0]["kl"] == pytest.approx(0, abs=1e-9)
    distinct = {found[name][0]["sentiment"] for name in found}
    assert len(distinct) == len(found)
    assert "figure and numbers: front" in capsys.readouterr().out


def test_weights_outside_the_open_interval_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pareto", "--weights", "1.0"])
    assert "--weights must lie in (0, 1), got [1.0]" in capsys.readouterr().err
