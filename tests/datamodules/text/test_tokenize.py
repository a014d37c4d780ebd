from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pl_prefopt.datamodules import TrainedTokenizer
from pl_prefopt.datamodules.text.formats import Example, parse
from pl_prefopt.datamodules.text.tokenize import Encoded, Encoder
from pl_prefopt.utilities.rows import BadRow

TEXTS = [
    "The sky is blue and wide.",
    "The sky is green.",
    "Paris is the capital of France.",
    "London calling, London!",
] * 5
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TrainedTokenizer(300)(lambda: iter(TEXTS), "k", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tokenizer that puts a blank before every text, as SentencePiece models do."""
    core = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator([*TEXTS, "\n x\n\n"], trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def chat(bpe: Any) -> Any:
    import copy

    tokenizer = copy.deepcopy(bpe)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def encode(tokenizer: Any, raw: dict[str, Any], **options: Any) -> Encoded:
    row = Encoder(tokenizer, **options)([parse(raw, allow_empty_prompt=True)])[0]
    if isinstance(row, BadRow):
        raise row
    return row


def test_ids_are_those_of_the_whole_text(bpe: Any) -> None:
    row = encode(bpe, {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."})
    for completion, text in zip(row.completions, (" blue.", " green."), strict=True):
        assert row.prompt + completion == bpe("The sky is" + text)["input_ids"] + [bpe.eos_token_id]
    assert row.prompt[0] == bpe.bos_token_id
    assert row.events == set()


@pytest.mark.parametrize("prompt", ["The sky is ", "The s", "Lon", "Paris is the capital of\n", "x  "])
@pytest.mark.parametrize("name", ["bpe", "llama"])
def test_labels_never_swallow_the_prompt(name: str, prompt: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    row = encode(tokenizer, {"prompt": prompt, "chosen": "blue.", "rejected": "don calling"})
    begin = [tokenizer.bos_token_id] if name == "bpe" else []
    assert row.prompt == begin + alone
    for completion, text in zip(row.completions, ("blue.", "don calling"), strict=True):
        assert completion[-1] == tokenizer.eos_token_id
        if name == "bpe":
            assert tokenizer.decode(completion[:-1]) == text
        else:
            written = "".join(tokenizer.convert_ids_to_tokens(completion[:-1])).replace("\u2581", " ")
            assert written == text


def test_border_merges_are_counted(bpe: Any) -> None:
    row = encode(bpe, {"prompt": "The sky is ", "chosen": "blue.", "rejected": "green."})
    joint = bpe("The sky is blue.")["input_ids"]
    assert joint[: len(row.prompt)] != row.prompt
    assert row.events == {"split_at_border"}


def test_one_bos_and_one_eos(bpe: Any) -> None:
    raw = {"prompt": "<bos>The sky is", "chosen": " blue.<eos>", "rejected": " green."}
    row = encode(bpe, raw)
    assert row.prompt.count(bpe.bos_token_id) == 1
    assert [c.count(bpe.eos_token_id) for c in row.completions] == [1, 1]
    kept = encode(bpe, raw, eos="keep")
    assert [c.count(bpe.eos_token_id) for c in kept.completions] == [1, 0]
    with pytest.raises(ValueError, match=r"eos must be one of append, keep, got 'add'"):
        Encoder(bpe, eos="add")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is green", "The sky is"),
        ("The sky", "The sky is blue", "The"),
        ("The sky is ", "The sky is blue", "The sky"),
        ("London Paris", "London London", "London"),
    ],
)
def test_implicit_prompt_is_a_run_of_whole_tokens(bpe: Any, chosen: str, rejected: str, prompt: str) -> None:
    row = encode(bpe, {"chosen": chosen, "rejected": rejected})
    ids = [bpe(t)["input_ids"] for t in (chosen, rejected)]
    assert [row.prompt + c for c in row.completions] == [[*i, bpe.eos_token_id] for i in ids]
    shared = len(row.prompt)
    assert bpe.decode(row.prompt[1:]).startswith(prompt)
    assert ids[0][shared] != ids[1][shared] or min(map(len, ids)) == shared + 1
    assert all(len(c) > 1 for c in row.completions)


def test_no_common_beginning(bpe: Any) -> None:
    raw = {"chosen": "Paris ", "rejected": "London"}
    with pytest.raises(BadRow, match="do not begin alike"):
        encode(bpe, raw)
    assert encode(bpe, raw, allow_empty_prompt=True).prompt == [bpe.bos_token_id]


def test_empty_prompt_is_bos_or_an_error(bpe: Any, llama: Any) -> None:
    raw = {"prompt": "", "chosen": "Paris", "rejected": "London"}
    assert encode(bpe, raw).prompt == [bpe.bos_token_id]
    with pytest.raises(BadRow, match="gives no token"):
        encode(llama, raw)
    assert encode(llama, raw, allow_empty_prompt=True).prompt == [llama.bos_token_id]


CHAT = {
    "prompt": [{"role": "user", "content": "The sky?"}],
    "chosen": [{"role": "assistant", "content": "blue"}],
    "rejected": [{"role": "assistant", "content": "green"}],
}


def test_chat_rows_end_at_the_end_of_the_turn(chat: Any) -> None:
    row = encode(chat, CHAT)
    text = "<bos><|im_start|>user\nThe sky?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(row.prompt) == text
    assert [chat.decode(c) for c in row.completions] == ["blue<|im_end|>", "green<|im_end|>"]
    assert (
        encode(chat, CHAT, eos="keep").completions[0]
        == row.completions[0] + chat("\n", add_special_tokens=False)["input_ids"]
    )
    chat.chat_template = chat.chat_template.replace("<|im_end|>", "")
    assert [chat.decode(c) for c in encode(chat, CHAT).completions] == ["blue\n<eos>", "green\n<eos>"]


def test_last_assistant_turn_of_the_prompt_is_continued(chat: Any) -> None:
    start = [*CHAT["prompt"], {"role": "assistant", "content": "It is"}]
    raw = CHAT | {
        "prompt": start,
        "chosen": [{"role": "user", "content": "Yes"}],
        "rejected": [{"role": "user", "content": "No"}],
    }
    chat.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    row = encode(chat, raw)
    assert chat.decode(row.prompt) == "[user] The sky?[assistant] It is"
    assert chat.decode(row.completions[0]) == "[user] Yes<eos>"


def test_tools_and_arguments_reach_the_template(chat: Any) -> None:
    chat.chat_template = (
        "{{ tools[0].name if tools else 'none' }} {{ style }}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    raw = CHAT | {"tools": [{"name": "look"}], "chat_template_kwargs": {"style": "short"}}
    row = encode(chat, raw, chat_template_kwargs={"style": "long"})
    assert chat.decode(row.prompt) == "look short[user]The sky?[assistant]"
    assert chat.decode(encode(chat, CHAT, chat_template_kwargs={"style": "long"}).prompt).startswith("none long")


def test_bad_conversations(bpe: Any, chat: Any) -> None:
    with pytest.raises(BadRow, match=r"no chat template.*Set chat_template:"):
        encode(bpe, CHAT)
    chat.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadRow, match="whose prompt the chat template writes differently") as caught:
        encode(chat, CHAT)
    assert caught.value.reason == "prompt_not_prefix"
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRow, match="roles must alternate"):
        encode(chat, CHAT)


def test_one_bad_row_leaves_the_others_alone(bpe: Any) -> None:
    good, bad = {"prompt": "The", "chosen": " sky", "rejected": " blue"}, {"chosen": "Paris", "rejected": "London"}
    examples: list[Example] = [parse(good), parse(bad), parse(good)]
    first, second, third = Encoder(bpe)(examples)
    assert isinstance(second, BadRow)
    assert first == third == encode(bpe, good)


def test_text_that_gives_no_token(tmp_path: Path) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(["ab ab"], trainers.BpeTrainer(special_tokens=["<e>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>")
    with pytest.raises(BadRow, match=r"'rejected'.*gives no token"):
        encode(tokenizer, {"prompt": "ab", "chosen": " ab", "rejected": " zz"})
