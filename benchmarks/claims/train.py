"""Short training runs in the sentiment world: the library's module and objectives in a bare loop, data in memory.

A run of 150 steps takes a few seconds, most of which a Trainer with its loaders, loggers and hooks would double.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.demo.text.exact import Enumeration, enumerate_policy, measure
from pl_prefopt.demo.text.pairs import Recipe, Row, draw_rows
from pl_prefopt.demo.text.world import TOPICS, UNSEEN_TOPICS, WORDS, SentimentWorld
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import CausalLM, FromCallable

STARTS = Path("runs/claims/starts")
TOPIC_NAMES = tuple(TOPICS)
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
START_STEPS, START_ROWS = 400, 256
Batch = dict[str, Tensor]


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The tokenizer of the world, made once."""
    return sentiment_tokenizer()


def ids(text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


@lru_cache(maxsize=4)
def completions(longest: int) -> tuple[Tensor, Tensor]:
    """(N, L + 1) token ids of every text with its EOS, and (N,) their lengths."""
    words = torch.from_numpy(SentimentWorld(longest).words)
    table = torch.tensor([ids(f" {w}")[0] for w in WORDS])
    lengths = (words >= 0).sum(1)
    out = torch.zeros(len(words), longest + 1, dtype=torch.long)
    out[:, :longest] = torch.where(words >= 0, table[words.clamp(min=0)], 0)
    out[torch.arange(len(words)), lengths] = tokenizer().eos_token_id
    return out, lengths + 1


def batch_of(world: SentimentWorld, topics: Sequence[str], items: Tensor, **columns: Tensor) -> Batch:
    """A text batch: for every row a topic and the numbers (B, K) of its texts."""
    tokens, lengths = completions(world.max_words)
    prompts = torch.tensor([ids(world.prompt(t)) for t in topics])
    mask = torch.arange(tokens.shape[1]) < lengths[items][..., None]
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts, dtype=torch.bool),
        "completion_ids": tokens[items],
        "completion_mask": mask,
        "index": torch.arange(len(items)),
        **columns,
    }


def pairs(world: SentimentWorld, rows: Sequence[Row]) -> Batch:
    """All rows of `draw_rows`, pairs or lists, as one batch."""
    sides = [r.get("completions") or (r["chosen"], r["rejected"]) for r in rows]
    items = torch.tensor([[world.index(text) for text in row] for row in sides])
    about = {world.prompt(t): t for t in (*TOPICS, *UNSEEN_TOPICS)}
    columns = {k: torch.tensor([r[k] for r in rows]) for k in ("preference_prob", "relevance") if k in rows[0]}
    if "chosen_margins" in rows[0]:
        columns["margins"] = torch.tensor([[r["chosen_margins"], r["rejected_margins"]] for r in rows])
    return batch_of(world, [about[r["prompt"]] for r in rows], items, **columns)


def drawn(
    world: SentimentWorld, recipe: Recipe, seed: int, *, held: bool = False, topics: Sequence[str] = TOPIC_NAMES
) -> Batch:
    """`recipe.rows` rows of the world as one batch."""
    rng = np.random.default_rng([seed, int(held)])
    return pairs(world, list(draw_rows(world, tuple(topics), recipe, recipe.rows, held=held, rng=rng)))


def minibatches(data: Batch, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches, epoch after epoch in new orders."""
    count, generator = len(data["index"]), torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    for i in range(steps):
        rows = order[i * size : (i + 1) * size]
        yield {k: v[rows] for k, v in data.items()}


def module(network: nn.Module, objective: Objective, **options: Any) -> TextPreferenceModule:
    """The library's module on this network itself; its reference is a copy of the network as it is now."""
    made = TextPreferenceModule(FromCallable(lambda: network), objective, **options)
    made.configure_model()
    made.train()
    return made


def train(
    network: nn.Module,
    objective: Objective,
    data: Batch,
    *,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    size: int = 64,
    watch: Callable[[nn.Module], None] | None = None,
    every: int = 0,
) -> nn.Module:
    """Train a copy of `network` with AdamW, a cosine schedule and clipping at 1, the demo's recipe.

    Args:
        network: start and reference.
        objective: of the library.
        data: all rows.
        steps: optimizer steps.
        seed: order of the rows.
        lr: first learning rate.
        size: rows per step.
        watch: called with the network after every `every` steps.
        every: 0 never calls it.
    """
    trained = module(copy.deepcopy(network).requires_grad_(True), objective)
    optimizer = torch.optim.AdamW(trained.policy.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step, batch in enumerate(minibatches(data, size, steps, seed), 1):
        loss = trained.objective(trained.score(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if watch is not None and every and step % every == 0:
            watch(trained.policy)
    return trained.policy


def start(world: SentimentWorld, seed: int) -> nn.Module:
    """A language model that has learned the neutral texts of the world, about all topics; kept on disk per seed."""
    network = CausalLM(config=CONFIG, seed=seed)()
    file = STARTS / f"{world.max_words}-{seed}-{START_STEPS}.safetensors"
    if not file.exists():
        _learn_language(network, world, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, part)
        os.replace(part, file)
    network.load_state_dict(load_file(file))
    return network


def _learn_language(network: nn.Module, world: SentimentWorld, seed: int) -> None:
    """Maximum likelihood on fresh draws at every step."""
    generator = torch.Generator().manual_seed(seed)
    topics = (*TOPICS, *UNSEEN_TOPICS)
    chances = torch.stack([torch.from_numpy(world.probabilities(t)) for t in topics])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=START_STEPS)
    share = -(-START_ROWS // len(topics))
    for _ in range(START_STEPS):
        items = torch.multinomial(chances, share, replacement=True, generator=generator).flatten()
        batch = batch_of(world, [t for t in topics for _ in range(share)], items[:, None])
        tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"][:, 0]], 1)
        first = batch["prompt_ids"].shape[1] - 1
        logits = network(input_ids=tokens).logits[:, first:-1]
        labels = batch["completion_ids"][:, 0].masked_fill(~batch["completion_mask"][:, 0], -100)
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def written_out(network: nn.Module, world: SentimentWorld, topics: Sequence[str] = TOPIC_NAMES) -> Enumeration:
    """Probability of every text."""
    return enumerate_policy(network, tokenizer(), world, topics)


def exact(network: nn.Module, world: SentimentWorld, reference: Enumeration) -> dict[str, float]:
    """Exact reward, KL to the reference, entropy and length on the topics of the pairs."""
    return measure(world, TOPIC_NAMES, written_out(network, world), reference)


def accuracy(policy: Enumeration, reference: Enumeration, world: SentimentWorld, rows: int = 2000) -> float:
    """Share of noise-free pairs of texts never trained on that the implicit reward log(pi/pi_ref) ranks right."""
    clean = Recipe(rows=rows, temperature=0.0)
    gaps = policy.logps - reference.logps
    place = {world.prompt(t): i for i, t in enumerate(TOPIC_NAMES)}
    hits = []
    for row in draw_rows(world, TOPIC_NAMES, clean, rows, held=True, rng=np.random.default_rng(0)):
        chosen, rejected = (gaps[place[row["prompt"]], world.index(row[k])] for k in ("chosen", "rejected"))
        hits.append(float(chosen > rejected))
    return float(np.mean(hits))
