from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_prefopt.datamodules import (
    PretrainedTokenizer,
    TextPreferenceDataModule,
    TokenizerBuilder,
    TrainedTokenizer,
    Truncation,
)
from pl_prefopt.utilities.configurable import from_config
from tests.datamodules.sample_files import SHARED, copy_of, word_pairs, write_jsonl

real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder ../shared/data/text is not here")
CHAT = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def module(path: Path | None, **options: Any) -> TextPreferenceDataModule:
    folder = options.pop("folder", None) or Path(str(path)).parent
    given = {"tokenizer": TrainedTokenizer(kind="word"), "batch_size": 4, "cache_dir": str(folder / "cache")}
    return TextPreferenceDataModule(None if path is None else str(path), **(given | options))


def ready(path: Path, **options: Any) -> TextPreferenceDataModule:
    data = module(path, **options)
    data.setup("fit")
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", word_pairs(40))


def test_batches_hold_the_contract(path: Path) -> None:
    data = ready(path)
    batch = next(iter(data.train_dataloader()))
    assert {k: v.dtype for k, v in batch.items()} == {
        "prompt_ids": torch.int64, "prompt_mask": torch.bool, "completion_ids": torch.int64,
        "completion_mask": torch.bool, "index": torch.int64,
    }  # fmt: skip
    assert batch["completion_ids"].shape[:2] == (4, 2)
    rows = data.datasets["train"]
    for i, index in enumerate(batch["index"].tolist()):
        row = rows[index]
        assert batch["prompt_ids"][i][batch["prompt_mask"][i]].tolist() == row["prompt_ids"]
        for k in (0, 1):
            mask = batch["completion_mask"][i, k]
            assert batch["completion_ids"][i, k][mask].tolist() == row["completion_ids"][k]
            assert (batch["completion_ids"][i, k][~mask] == data.tokenizer.pad_token_id).all()
            assert mask.sum() == mask.cumprod(0).sum() == len(row["completion_ids"][k])
        text = data.texts("train", index)
        assert data.tokenizer.decode(row["prompt_ids"][1:]) == text["prompt"]
        assert [data.tokenizer.decode(c[:-1]) for c in row["completion_ids"]] == text["completions"]
    assert batch["prompt_mask"].any(0).all()
    assert batch["completion_mask"].flatten(0, 1).any(0).all()


def test_numbers_pass_through(tmp_path: Path) -> None:
    rows = [
        r | {"weight": i / 2, "margin": -i, "preference_prob": 0.5, "margins": [[i, 1], [2, 3]]}
        for i, r in enumerate(word_pairs(8))
    ]
    data = ready(write_jsonl(tmp_path / "a.jsonl", rows), length_buckets=False)
    batch = next(iter(data.train_dataloader()))
    index = batch["index"].float()
    assert torch.equal(batch["weight"], index / 2)
    assert torch.equal(batch["margin"], -index)
    assert batch["margins"].shape == (4, 2, 2)
    assert torch.equal(batch["margins"][:, 0, 0], index)
    assert all(batch[k].dtype == torch.float32 for k in ("weight", "margin", "margins", "preference_prob"))
    plain = ready(write_jsonl(tmp_path / "b.jsonl", word_pairs(8)))
    assert data.datasets["train"].digest() == plain.datasets["train"].digest()


def test_csv_holds_pairs_turns_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    turns = '[{""role"": ""user"", ""content"": ""Hi""}]'
    path.write_text(
        "prompt,chosen,rejected,weight,margins\n"
        'p," [1, 2]"," {""a"": 1}",0.5,"[1, 2]"\n'
        f'"{turns}",[1],"[{{""b"": 2}}]",2,"[3, 4]"\n',
        encoding="utf-8",
    )
    data = ready(path, chat_template=CHAT, batch_size=2, length_buckets=False)
    rows = [data.datasets["train"][i] for i in (0, 1)]
    assert [(r["weight"], r["margins"]) for r in rows] == [(0.5, [[1], [2]]), (2, [[3], [4]])]
    assert data.texts("train", 0)["completions"] == [" [1, 2]", ' {"a": 1}']
    assert data.texts("train", 1) == {"prompt": "user: Hi", "completions": ["assistant: [1]", 'assistant: [{"b": 2}]']}


def test_rows_survive_pickling(path: Path) -> None:
    rows = ready(path).datasets["train"]
    for have in (rows, rows.select(np.asarray([5, 3]))):
        again = pickle.loads(pickle.dumps(have))
        assert [again[i] for i in range(len(again))] == [have[i] for i in range(len(have))]
        assert len(pickle.dumps(have)) < 2000


def test_ragged_lists(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completions": [f" a{j} b" for j in range(2 + i % 3)], "relevance": [*range(2 + i % 3)]}
        for i in range(12)
    ]
    data = ready(
        write_jsonl(tmp_path / "a.jsonl", rows), length_buckets=False, batch_size=12, truncation=Truncation(20)
    )
    batch = next(iter(data.train_dataloader()))
    sizes = 2 + batch["index"] % 3
    assert batch["completion_ids"].shape[1] == 4
    assert torch.equal(batch["list_mask"], torch.arange(4) < sizes[:, None])
    assert torch.equal(batch["completion_mask"].any(-1), batch["list_mask"])
    assert torch.equal(batch["relevance"][:, 0], sizes.float() - 1)


def test_second_stage_gets_the_same_ids(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(path, tokenizer=TrainedTokenizer(300))
    monkeypatch.setattr(TrainedTokenizer, "_train", lambda *_: pytest.fail("trained again"))
    second = ready(path, tokenizer=TrainedTokenizer(300), truncation=Truncation(64), batch_size=2)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert first.vocab_size == second.vocab_size == len(first.tokenizer)
    assert first.datasets["train"].digest() == second.datasets["train"].digest()


def test_training_a_tokenizer_twice_gives_the_same_one(path: Path, tmp_path: Path) -> None:
    one, two = (ready(path, folder=tmp_path / name, tokenizer=TrainedTokenizer(300)) for name in "ab")
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()


def test_tokenizer_from_files_path_and_folder(path: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("alpha beta\ngamma\n", encoding="utf-8")
    kept = tmp_path / "kept"
    trained = ready(path, tokenizer=TrainedTokenizer(kind="word", files=[str(words)], path=str(kept))).tokenizer
    assert {"alpha", " beta", "gamma"} <= set(trained.get_vocab())
    assert ready(path, tokenizer=str(kept)).tokenizer.get_vocab() == trained.get_vocab()


def test_tokenised_rows_come_from_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module(path)
    data.prepare_data()
    monkeypatch.setattr("pl_prefopt.datamodules.text.build.tokenize", lambda *_, **__: pytest.fail("tokenised again"))
    again = module(path, batch_size=2, seed=5, num_workers=1)
    again.prepare_data()
    again.setup("fit")
    monkeypatch.undo()
    other = ready(path, truncation=Truncation(7))
    assert other.datasets["train"].folder != again.datasets["train"].folder
    path.write_text(path.read_text().replace("good", "good good"), encoding="utf-8")
    assert ready(path).datasets["train"].digest() != again.datasets["train"].digest()


def test_digest_depends_on_what_the_model_sees_only(path: Path, tmp_path: Path) -> None:
    data = ready(path)
    base = data.datasets["train"].digest()
    moved = ready(write_jsonl(tmp_path / "moved.jsonl", word_pairs(40)), batch_size=2, seed=3, length_buckets=False)
    assert moved.datasets["train"].digest() == base
    rows = data.datasets["train"]
    assert rows.select(np.arange(40)).digest() == base
    assert rows.select(np.arange(40)[::-1]).digest() != base
    assert ready(path, truncation=Truncation(7)).datasets["train"].digest() != base
    assert ready(path, eos="keep").datasets["train"].digest() != base


def test_validation_by_fraction_and_by_name(path: Path, tmp_path: Path) -> None:
    data = ready(path, val=0.25, seed=1)
    data.setup("fit")
    train, val = ({data.datasets[s].source_row(i) for i in range(len(data.datasets[s]))} for s in ("train", "val"))
    assert len(val) == 10
    assert train | val == set(range(40))
    assert not train & val
    index = int(next(iter(data.val_dataloader()))["index"][0])  # type: ignore[arg-type]
    source = json.loads(path.read_text().splitlines()[data.datasets["val"].source_row(index)])
    assert data.texts("val", index)["completions"] == [source["chosen"], source["rejected"]]
    several = ready(path, val={"film": copy_of(path), "book": [copy_of(path)] * 2}, limit={"val": 50})
    assert several.names("val") == ["val/film", "val/book"]
    assert [len(several.datasets[n]) for n in several.names("val")] == [40, 50]
    assert len(several.val_dataloader()) == 2


def test_statistics(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen and " " + chosen, "rejected": " " + rejected}

    rows = [
        pair("p", "a b", "c"), pair("p", "a b", "c"), pair("p", "a b", "d"), pair("p", "c", "a b"), pair("q", "a", "b"),
        pair("q", "", "b"), pair("q", "b", "b"), pair("q", "x y z z z", "x y z z w"),
    ]  # fmt: skip
    data = ready(write_jsonl(tmp_path / "a.jsonl", rows), on_bad_row="drop", truncation=Truncation(5, 2), batch_size=1)
    stats = data.stats("train")
    assert stats["rows"] == 5
    assert stats["counts"] == {
        "read": 8, "kept": 5, "dropped/empty_completion": 1, "dropped/identical": 1,
        "dropped/identical_after_truncation": 1,
    }  # fmt: skip
    assert stats["duplicates"] == 1
    assert stats["same_prompt_and_chosen"] == 2
    assert stats["contradictory"] == 3
    assert stats["distinct_prompts"] == 2
    assert (stats["chosen_longer"], stats["rejected_longer"]) == (0.6, 0.2)
    assert stats["tokens"]["chosen"]["q100"] == 3
    assert stats["tokens"]["prompt"]["mean"] == 2


def test_hyper_parameters_are_plain_and_rebuild_the_tokenizer(path: Path) -> None:
    data = module(path, val={"a": str(path)}, columns={"chosen": "chosen"})
    assert json.loads(json.dumps(dict(data.hparams)))["batch_size"] == 4
    assert from_config(data.hparams["tokenizer"], TokenizerBuilder) == TrainedTokenizer(kind="word")


def test_the_command_line_reads_every_kind_of_value(path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextPreferenceDataModule, "data")
    base = ["--data", "TextPreferenceDataModule", f"--data.cache_dir={path.parent}"]

    def build(*args: str) -> dict[str, Any]:
        data = parser.instantiate(parser.parse_args([*base, *args])).data
        return dict(data.hparams)

    first = build(f"--data.train={path}", "--data.val=0.25", "--data.tokenizer=somewhere", "--data.limit=5")
    assert (first["train"], first["val"], first["tokenizer"], first["limit"]) == (str(path), 0.25, "somewhere", 5)
    second = build(
        f"--data.train=[{path},{path}]", "--data.val={x: v.jsonl}", "--data.limit={train: 3}",
        "--data.tokenizer=TrainedTokenizer", "--data.tokenizer.vocab_size=300", "--data.columns={chosen: good}",
    )  # fmt: skip
    assert second["train"] == [str(path)] * 2
    assert (second["val"], second["limit"], second["columns"]) == ({"x": "v.jsonl"}, {"train": 3}, {"chosen": "good"})
    assert second["tokenizer"]["init_args"]["vocab_size"] == 300


def broken_pairs(**change: Any) -> list[dict[str, Any]]:
    rows = word_pairs(6)
    rows[3] |= change
    return rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": None}, r"a.jsonl, line 4: field 'chosen' must be text, a turn, .*, got null"),
        ({"prompt": ""}, r"a.jsonl, line 4: field 'prompt' must be text, got ''"),
        ({"rejected": " "}, r"a.jsonl, line 4: field 'rejected' must be text .*, got ' '"),
        ({"chosen": "x", "rejected": "x"}, r"a.jsonl, line 4: field 'rejected' must be .*, got the same as chosen"),
        ({"weight": float("nan")}, r"a.jsonl, line 4: field 'weight' must be a finite number >= 0, got nan"),
        ({"weight": 1.0}, r"a.jsonl, line 4: field 'weight' must be alike in all rows, got it in some rows only"),
        (
            {"chosen": [{"role": "user", "content": "x"}]},
            r"a.jsonl, line 4: field 'rejected' must be like the other .*, got text beside turns",
        ),
    ],
)
def test_bad_rows_stop_before_the_first_step(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", broken_pairs(**change))
    with pytest.raises(ValueError, match=words):
        module(path).prepare_data()
    dropped = ready(path, on_bad_row="drop").stats("train")
    assert dropped["rows"] == 5
    assert sum(n for k, n in dropped["counts"].items() if k.startswith("dropped/")) == 1
    assert not [p for p in (tmp_path / "cache" / "rows").iterdir() if not (p / "meta.json").is_file()]


def test_all_rows_dropped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", word_pairs(3))
    with pytest.raises(ValueError, match=r"at least one row must be left, got none; counted: .*prompt_too_long': 3"):
        ready(path, truncation=Truncation(3, prompt="drop"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"eval_batch_size": 2.5}, "eval_batch_size must be .* or None, got 2.5"),
        ({"on_bad_row": "skip"}, "on_bad_row must be one of error, drop, got 'skip'"),
        ({"val": 1.5}, r"val must be files, or a fraction in \(0, 1\) .*, got 1.5"),
        ({"val": 1}, "val must be .*, got 1$"),
        ({"val": 0.5, "streaming": True}, "must be files without .* fraction with streaming, got .*val=0.5"),
        ({"columns": {"choosen": "a"}}, "columns must be one of .*, got 'choosen'.*mean 'chosen'"),
        ({"limit": {"training": 3}}, "limit must be one of .*, got 'training'.*mean 'train'"),
        ({"limit": 0}, "limit must be an integer >= 1 or None, got 0"),
        ({"eos": "add"}, "eos must be one of append, keep, got 'add'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str, path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        ready(path, **options)


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train, val or test must be .*, got none of the three"):
        module(None, folder=tmp_path)


def test_tokenizer_without_pad_or_eos(path: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    core: Any = getattr(ready(path).tokenizer, "backend_tokenizer")  # noqa: B009  only fast tokenizers have it
    bare, no_eos = str(tmp_path / "bare"), str(tmp_path / "no_eos")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(bare)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>").save_pretrained(no_eos)
    with pytest.raises(ValueError, match=r"bare' must have a padding token.*pad_token: '<eos>'"):
        ready(path, tokenizer=bare)
    with pytest.raises(ValueError, match=r"no_eos' must have an EOS token.*eos: keep"):
        ready(path, tokenizer=no_eos)
    assert ready(path, tokenizer=no_eos, eos="keep").tokenizer.eos_token_id is None
    mended = ready(path, tokenizer=PretrainedTokenizer(bare, pad_token="<eos>"))
    assert mended.tokenizer.pad_token_id == mended.tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"pad_token must be in the vocabulary .*, got '<nothing>'"):
        ready(path, tokenizer=PretrainedTokenizer(bare, pad_token="<nothing>"))
    with pytest.raises(ValueError, match=r"tokenizer: '.*nowhere' could not be loaded"):
        ready(path, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"vocab_size must be at least 260 .* for kind 'bpe', got 100"):
        TrainedTokenizer(100)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    rows = [{"prompt": turns, "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"a.jsonl, line 1: field 'prompt' must be plain text, .*no chat template.*Set chat_template"
    ):
        ready(path, on_bad_row="drop")
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT, encoding="utf-8")
    one, two = ready(path, chat_template=CHAT), ready(path, chat_template=str(file))
    assert one.datasets["train"].digest() == two.datasets["train"].digest()
    with pytest.raises(ValueError, match=r"chat_template must be .*, got no file 'chat.jinj'"):
        ready(path, chat_template="chat.jinj")


def test_importing_the_package_is_light() -> None:
    code = "import sys, pl_prefopt.datamodules; print({'transformers', 'datasets', 'lightning'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout.strip() == "set()"
    )


@real
def test_film_pairs(tmp_path: Path) -> None:
    data = module(
        SHARED / "film_pairs.train.jsonl", folder=tmp_path, tokenizer=TrainedTokenizer(1000),
        val={"film": str(SHARED / "film_pairs.test.jsonl"), "product": str(SHARED / "product_pairs.test.jsonl")},
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert [len(data.datasets[n]) for n in data.datasets] == [3658, 455, 961]
    stats = data.stats("train")
    assert (stats["counts"], stats["distinct_prompts"], stats["duplicates"]) == ({"read": 3658, "kept": 3658}, 1, 0)
    assert data.texts("train", 0)["completions"][0].startswith(" A moving tale of love")
    assert sum(len(b["index"]) for b in data.val_dataloader()[0]) == 455  # type: ignore[index]


@real
def test_real_conversations(tmp_path: Path) -> None:
    path = SHARED / "dpo_en_demo.json"
    data = ready(
        path,
        folder=tmp_path,
        tokenizer=TrainedTokenizer(1000),
        chat_template=CHAT,
        truncation=Truncation(512),
        on_bad_row="drop",
    )
    stats = data.stats("train")
    assert stats["counts"]["read"] == 300
    assert stats["rows"] + sum(n for k, n in stats["counts"].items() if k.startswith("dropped/")) == 300
    assert stats["rows"] > 290
    raw = json.loads(path.read_text(encoding="utf-8"))
    for i in range(0, len(data.datasets["train"]), 29):
        source = raw[data.datasets["train"].source_row(i)]
        text = data.texts("train", i)
        assert text["completions"][0] == "assistant: " + source["chosen"]["value"]
        row = data.datasets["train"][i]
        assert max(len(row["prompt_ids"]) + len(c) for c in row["completion_ids"]) <= 512
        assert row["completion_ids"][0] != row["completion_ids"][1]
        assert source["chosen"]["value"].startswith(data.tokenizer.decode(row["completion_ids"][0][:5]).strip())


# ---- read as meant, or refused -------------------------------------------------------------------------------------


def test_columns_that_nothing_reads_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"id": i, "model": "m"} for i, row in enumerate(word_pairs(6))]
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": row.pop("prompt"), **row} for row in rows])
    for _ in range(2):  # the second reads the cache
        caplog.clear()
        with caplog.at_level("INFO"):
            ready(path)
        assert caplog.text.count("columns that are not used: 'id', 'model'") == 1
        assert caplog.text.count("the prompt of 6 rows is their column 'query'") == 1


def test_weights_that_are_all_zero_stop(tmp_path: Path) -> None:
    rows = [row | {"weight": 0} for row in word_pairs(6)]
    with pytest.raises(ValueError, match=r"a.jsonl: column 'weight' must be above 0 in at least one row"):
        ready(write_jsonl(tmp_path / "a.jsonl", rows))
    rows[4]["weight"] = 0.5
    ready(write_jsonl(tmp_path / "b.jsonl", rows))


def test_nothing_is_evaluated_on_the_training_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", word_pairs(6))
    (tmp_path / "b.jsonl").write_bytes(path.read_bytes())
    (tmp_path / "c.jsonl").symlink_to(path)
    other = str(write_jsonl(tmp_path / "d.jsonl", word_pairs(6, seed=1)))
    for name in "abc":
        with pytest.raises(ValueError, match=rf"val must be rows that are not trained on, got '.*{name}.jsonl'"):
            ready(path, val=[other, str(tmp_path / f"{name}.jsonl")])
        with pytest.raises(ValueError, match=r"test must be rows that are not trained on"):
            module(path, test=str(tmp_path / f"{name}.jsonl")).prepare_data()
    ready(path, val=other)


def test_inspect_shows_rows_as_the_model_sees_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one two three", "chosen": " four five six seven eight nine ten", "rejected": " no", "weight": 2}
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows * 2)
    data = ready(path, tokenizer=TrainedTokenizer(kind="word"), truncation=Truncation(8))
    text = data.inspect("train", 1)
    assert "rows 0 to 0 of 2" in text
    assert f"row 0 ({path}, line 1)" in text
    assert "prompt (4 tokens): <bos>|one| two| three\n" in text
    assert "chosen (4 tokens, 4 of 8 cut off at the end):  four| five| six| seven\n" in text
    assert "rejected (2 tokens):  no|<eos>\n" in text
    assert "weight: 2.0" in text
    with pytest.raises(ValueError, match="split must be one of train, got 'val'"):
        data.inspect("val")


def test_pairs_against_their_scores_are_refused_dropped_or_kept(tmp_path: Path) -> None:
    rows = [row | {"score_chosen": 2, "score_rejected": 3 if i == 2 else 1} for i, row in enumerate(word_pairs(6))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a.jsonl, line 3: field 'score_chosen' must be not worse than 'score_rej"):
        ready(path)
    assert ready(path, reversed_scores="drop").stats("train")["counts"]["dropped/reversed_scores"] == 1
    assert ready(path, on_bad_row="drop").stats("train")["counts"]["dropped/reversed_scores"] == 1
    kept = ready(path, reversed_scores="keep")
    assert kept.stats("train")["counts"]["changed/reversed_scores"] == 1
    assert kept.texts("train", 2)["completions"] == [rows[2]["chosen"], rows[2]["rejected"]]
    with pytest.raises(ValueError, match="reversed_scores must be one of error, drop, keep, got 'skip'"):
        ready(path, reversed_scores="skip")
