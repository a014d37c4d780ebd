"""The frame of the claims: intervals, verdicts, results that are kept, the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.claims import __main__ as script
from benchmarks.claims import frame, pool, train
from benchmarks.intervals import interval
from pl_prefopt.demo.text.exact import data_enumeration
from pl_prefopt.demo.text.pairs import Recipe
from pl_prefopt.demo.text.world import SentimentWorld
from pl_prefopt.objectives import DPO

ROOT = Path(__file__).parents[2]
VALUES = [0.3, 0.1, 0.4, 0.15, 0.92]


def claim(low: float | None = 0.0, high: float | None = None) -> frame.Claim:
    return frame.Claim(
        statement="It works",
        paper="somebody",
        setup="as they say",
        run=lambda seed: {"x": VALUES[seed]},
        effects=(
            frame.Effect("x", lambda r: r["x"], low=low, high=high),
            frame.Effect("minus x", lambda r: -r["x"]),
        ),
        figure=lambda results: Figure(),
        tried="more of it",
    )


def outcome(**bounds: float | None) -> frame.Outcome:
    return frame.Outcome("text_x", claim(**bounds), [{"x": v} for v in VALUES], 12.0)


def test_interval_is_that_of_scipy() -> None:
    found = interval(VALUES)
    low, high = stats.t.interval(0.95, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(VALUES), low, high), rel=1e-12)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], []])
def test_interval_wants_two_finite_values(values: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="two or more finite"):
        interval(values)


@pytest.mark.parametrize(
    ("low", "high", "holds"), [(-0.1, None, True), (0.0, None, False), (-0.1, 0.8, True), (-0.1, 0.7, False)]
)
def test_a_claim_holds_when_the_whole_interval_lies_inside(low: float, high: float | None, holds: bool) -> None:
    assert outcome(low=low, high=high).holds is holds


def test_page_tells_effect_interval_verdict_and_what_was_tried() -> None:
    text = frame.page([outcome(low=-0.1)], {"seeds": "5"})
    i = interval(VALUES)
    cell = f"{i.mean:.2f} ({i.low:.2f} to {i.high:.2f})"
    assert f"| [text_x](#text_x): It works | x: {cell}, yes | holds |" in text
    assert "| minus x |" in text
    assert "![text_x](images/claims/text_x.png)" in text
    assert "What was tried: more of it" in text
    assert "| does not show |" in frame.page([outcome(low=0.0)], {})


def test_write_page_makes_page_and_picture(tmp_path: Path) -> None:
    page = frame.write_page(tmp_path, [outcome()], {})
    assert "## text_x" in page.read_text()
    assert (tmp_path / "images" / "claims" / "text_x.png").stat().st_size > 0


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "text_displacement"
    frame.write_result(tmp_path, name, 0, {"x": 1.0}, 3.0)
    asked: list[int] = []

    class Here:
        """A pool that works in this process."""

        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function: object, name: str, seed: int, folder: Path) -> SimpleNamespace:
            asked.append(seed)
            frame.write_result(folder, name, seed, {"x": float(seed)}, 1.0)
            return SimpleNamespace(result=lambda: (name, seed, 1.0))

    monkeypatch.setattr(pool, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(pool, "as_completed", iter)
    assert [done[1] for done in pool.run_missing([name], 3, tmp_path)] == [1, 2]
    assert asked == [1, 2]
    assert list(pool.run_missing([name], 3, tmp_path)) == []
    file = frame.result_file(tmp_path, name, 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "other"}))
    assert [done[1] for done in pool.run_missing([name], 3, tmp_path)] == [1]


def test_results_depend_on_what_runs_not_on_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "HERE", tmp_path)
    for name in frame.SHARED:
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    file = tmp_path / "text_x.py"

    def key(body: str) -> str:
        file.write_text(body)
        return frame.digest("text_x")

    said = key("def run(seed): return seed\nCLAIM = 'it works'\n")
    assert key("# more\ndef run(seed): return seed\nCLAIM = 'it may work'\ndef figure(r): ...\n") == said
    assert key("def run(seed): return seed + 1\nCLAIM = 'it works'\n") != said
    (tmp_path / "train.py").write_text("x = 2\n")
    assert key("def run(seed): return seed\nCLAIM = 'it works'\n") != said


def test_outcomes_need_all_seeds(tmp_path: Path) -> None:
    name = "text_displacement"
    for seed in range(2):
        frame.write_result(tmp_path, name, seed, {"x": 1.0}, 2.0)
    (found,) = script.outcomes(2, tmp_path)
    assert (found.name, found.seconds, len(found.results)) == (name, 4.0, 2)
    assert list(script.outcomes(3, tmp_path)) == []


@pytest.mark.parametrize("name", frame.names())
def test_every_claim_is_on_the_page(name: str) -> None:
    found = frame.load(name)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert f"[{name}](#{name}): {found.statement}" in page
    assert (ROOT / "docs" / "images" / "claims" / f"{name}.png").is_file()
    assert any(e.decides for e in found.effects)


def test_rows_of_the_world_become_a_batch() -> None:
    world = SentimentWorld(2)
    data = train.drawn(world, Recipe(rows=6, temperature=0.5, margins=("brevity",)), seed=0)
    texts = train.tokenizer().batch_decode(data["completion_ids"].flatten(0, 1), skip_special_tokens=True)
    numbers = torch.tensor([world.index(t) for t in texts]).view(6, 2)
    assert torch.equal(data["completion_mask"].sum(-1), torch.from_numpy(world.lengths)[numbers] + 1)
    brevity = torch.from_numpy(world.rewards("battery", "brevity"))
    assert torch.allclose(data["margins"][..., 0].double(), brevity[numbers])


def test_training_leaves_the_start_and_lowers_the_loss() -> None:
    world = SentimentWorld(2)
    begin = train.CausalLM(config=train.CONFIG)()
    before = [p.clone() for p in begin.parameters()]
    data = train.drawn(world, Recipe(rows=64, temperature=0.0), seed=0)
    objective, steps = DPO(beta=1.0), []
    ended = train.train(begin, objective, data, steps=6, seed=0, size=32, watch=steps.append, every=3)
    assert all(torch.equal(a, b) for a, b in zip(before, begin.parameters(), strict=True))
    scored = train.module(begin, objective)
    scored.policy = ended
    assert len(steps) == 2
    assert float(objective(scored.score(data)).mean().detach()) < 0.69


def test_accuracy_of_the_reward_itself_is_one() -> None:
    world = SentimentWorld(2)
    flat = data_enumeration(world, train.TOPIC_NAMES)
    best = type(flat)(torch.stack([torch.from_numpy(world.rewards(t)) for t in train.TOPIC_NAMES]), flat.leak)
    zero = type(flat)(torch.zeros_like(best.logps), flat.leak)
    assert train.accuracy(best, zero, world, rows=50) == 1.0
