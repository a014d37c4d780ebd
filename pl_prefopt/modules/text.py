"""`TextPreferenceModule`: causal language models on preference pairs and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_prefopt.logprobs import Head, TokenScores, score_tokens
from pl_prefopt.logprobs.causal import check_head, hidden_states, honours_shared_prefix, output_head
from pl_prefopt.logprobs.layout import Rows, Tokens, prefix_pays, read_tokens, separate_rows, shared_prefix_rows
from pl_prefopt.modules.base import Batch, PreferenceModule
from pl_prefopt.modules.text_cache import TextReferenceCache
from pl_prefopt.modules.text_sampling import sample_texts
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.references import AutoReference, CachedReference, Reference
from pl_prefopt.scores import PairScores, data_columns
from pl_prefopt.utilities.modes import eval_mode


class TextPreferenceModule(PreferenceModule):
    """Preference optimisation of a causal language model with any objective of the library.

    The output layer runs at completion positions only; prompts longer than completions are read once per pair
    (shared-prefix rows); the reference runs in the same dtype and through the same path as the policy.

    Args:
        policy: what to train, e.g. `CausalLM(pretrained="Qwen/Qwen2.5-0.5B")`.
        objective: DPO, TDPO, LDDPO, ... or a mixture; None: DPO(). (An object as default would lend its arguments to
            whatever class a configuration names.)
        reference: AutoReference, FrozenCopy, AdapterOff, AdapterCopy, CachedReference or NoReference.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped per optimizer step.
        shared_prefix: True, False, or None: on where the model honours it and prompts are the longer part.
        chunk_size: positions per block of the output layer.
        vocab_chunk_size: vocabulary entries per block; None takes all at once.
        seed: keys the random numbers of training.

    Raises:
        ValueError: an objective that needs the full distribution of a cached reference, or any of the base class.
    """

    provides: ClassVar[frozenset[str]] = PreferenceModule.provides | {
        "logps", "lengths", "kl", "collision", "relevance", "ranks",
    }  # fmt: skip
    metric_names: ClassVar[tuple[str, ...]] = (
        *PreferenceModule.metric_names,
        "chosen_logp", "rejected_logp", "length_chosen", "length_rejected", "chosen_kl", "rejected_kl",
    )  # fmt: skip

    def __init__(
        self,
        policy: PolicyBuilder,
        objective: Objective | None = None,
        reference: Reference = AutoReference(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        shared_prefix: bool | None = None,
        chunk_size: int = 1024,
        vocab_chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, objective or DPO(), reference, optimizer, lr_scheduler, seed)
        self.shared_prefix = shared_prefix
        self.chunk_size = chunk_size
        self.vocab_chunk_size = vocab_chunk_size
        self.save_hyperparameters(
            {"shared_prefix": shared_prefix, "chunk_size": chunk_size, "vocab_chunk_size": vocab_chunk_size}
        )
        self.cache: TextReferenceCache | None = None
        if isinstance(self.reference_config, CachedReference) and self.needs_reference:
            if "kl" in self.objective.needs:
                raise ValueError(
                    f"objective {type(self.objective).__name__} needs the reference's full distribution, which a "
                    "cache of token log-probabilities cannot give; use reference: AutoReference"
                )
            self.cache = TextReferenceCache(self.reference_config.path)
        self._prefix_honoured = False

    # ---- life cycle ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the output layer, the vocabulary and the shared-prefix rows on the model that will be used."""
        self.configure_model()
        self._check_vocabulary()
        with eval_mode(self.policy):
            check_head(self.policy)
            self._prefix_honoured = self.shared_prefix is not False and honours_shared_prefix(self.policy)
        if self.shared_prefix and not self._prefix_honoured:
            raise ValueError(
                "shared_prefix: true, but this model gives other hidden states for shared-prefix rows; leave it unset "
                "or set it to false"
            )

    def _check_vocabulary(self) -> None:
        size = getattr(getattr(self.trainer, "datamodule", None), "vocab_size", None)
        rows = self.policy.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
        if size is not None and size > rows:
            raise ValueError(
                f"the tokenizer has {size} tokens but the model embeds {rows}; use the model's own tokenizer, or set "
                f"config.vocab_size to at least {size}"
            )

    def on_fit_start(self) -> None:
        """Fill the reference cache of the training and validation sets before the first step."""
        super().on_fit_start()
        if self.cache is not None:
            self.cache.fill(self, ("train", "val"))

    def on_validation_start(self) -> None:
        """Fill the cache of the validation set for a stand-alone validation."""
        if self.cache is not None and not self.trainer.sanity_checking:
            self.cache.fill(self, ("val",))

    def on_test_start(self) -> None:
        """Fill the cache of the test set."""
        if self.cache is not None:
            self.cache.fill(self, ("test",))

    # ---- scores ----------------------------------------------------------------------------------------------------

    def rows(self, tokens: Tokens) -> Rows:
        """Lay tokens out for one forward pass: shared-prefix rows where they are honoured and pay."""
        share = self._prefix_honoured and (self.shared_prefix or prefix_pays(tokens)) and self._window_allows(tokens)
        return shared_prefix_rows(tokens) if share else separate_rows(tokens)

    def _window_allows(self, tokens: Tokens) -> bool:
        """Sliding-window layers do not window a 4-D mask, so every row must fit into the window."""
        config = self.policy.config  # type: ignore[union-attr]
        window = getattr(config, "sliding_window", None)
        if not isinstance(window, int):
            return True
        return int((tokens.prompt_length + tokens.length.amax(1)).max()) <= window

    def predicting_states(self, network: nn.Module, rows: Rows) -> Tensor:
        """(B, K, T, H) hidden states that predict each completion token."""
        hidden = hidden_states(network, rows)
        return hidden.flatten(0, 1)[rows.source.flatten()].unflatten(0, rows.source.shape)

    def token_scores(self, network: nn.Module, tokens: Tokens, rows: Rows, **options: Any) -> TokenScores:
        """Per-token log-probabilities (B, K, T) of the completions under `network`, zero beyond their lengths."""
        hidden = self.predicting_states(network, rows)
        b, k, t, _ = hidden.shape
        flat = score_tokens(
            hidden.flatten(0, 1),
            output_head(network),
            tokens.completion.flatten(0, 1),
            tokens.mask.flatten(0, 1),
            chunk_size=self.chunk_size,
            vocab_chunk_size=self.vocab_chunk_size,
            **options,
        )
        return TokenScores(*(None if v is None else v.view(b, k, t) for v in flat))  # type: ignore[arg-type]

    def score(self, batch: Batch) -> PairScores:
        """Policy and reference log-probabilities of a batch, reduced over tokens as the objective asks."""
        tokens = read_tokens(batch)
        needs = self.objective.needs
        if self.training and "rejected" not in needs:
            tokens = tokens.first(1)
        rows = self.rows(tokens)
        reference, options = self._reference_side(batch, tokens, rows)
        policy = self.token_scores(self.policy, tokens, rows, collision="collision" in needs, **options)
        logps = self.objective.reduce_tokens(policy.logps, tokens.mask)
        ref_logps = None if reference is None else self.objective.reduce_tokens(reference, tokens.mask)
        length = tokens.length
        return PairScores(
            logratios=logps if ref_logps is None else logps - ref_logps,
            logps=logps,
            ref_logps=ref_logps,
            sum_logps=policy.logps.sum(-1),
            lengths=length,
            kl=None if policy.kl is None else policy.kl.sum(-1),
            collision=None if policy.collision is None else policy.collision.sum(-1) / length.clamp(min=1),
            mask=batch.get("list_mask"),
            columns=data_columns(batch),
        )

    def _reference_side(self, batch: Batch, tokens: Tokens, rows: Rows) -> tuple[Tensor | None, dict[str, Any]]:
        """Reference log-probabilities per token, and what the policy pass needs to compute the KL against it."""
        if not self.needs_reference:
            return None, {}
        if self.cache is not None and self.split in self.cache.splits:
            return self.cache.lookup(self, batch["index"], tokens.length), {}
        assert self.reference is not None
        with self.reference.use(self.policy) as network:  # type: ignore[operator]
            if "kl" not in self.objective.needs:
                return self.token_scores(network, tokens, rows).logps, {}
            hidden, head = self.predicting_states(network, rows).flatten(0, 1), output_head(network)
            logps = score_tokens(
                hidden, head, tokens.completion.flatten(0, 1), tokens.mask.flatten(0, 1), chunk_size=self.chunk_size
            ).logps
        ref_head = Head(head.weight.detach(), head.bias, head.scale, head.softcap)
        return logps.view(tokens.mask.shape), {"ref_hidden": hidden, "ref_head": ref_head}

    def reference_logps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K, T) reference log-probabilities per token and (B, K) lengths, computed now."""
        tokens = read_tokens(batch)
        assert self.reference is not None
        with self.reference.use(self.policy) as network:  # type: ignore[operator]
            return self.token_scores(network, tokens, self.rows(tokens)).logps, tokens.length

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states that predict each token of the chosen and of the rejected completion; no output layer runs."""
        tokens = read_tokens(batch)
        hidden, mask = self.predicting_states(self.policy, self.rows(tokens)), tokens.mask
        return hidden[:, 0], mask[:, 0], hidden[:, 1], mask[:, 1]

    def sample(self, conditions: Sequence[str], count: int, seed: int, **options: Any) -> list[list[str]]:
        """`count` sampled continuations per prompt; the same for the same seed and batch of prompts.

        Args:
            conditions: prompts.
            count: K.
            seed: key of the draws.
            options: max_new_tokens (64), temperature (1), top_p (1), batch_size (16 prompts), as `generate` has them.
        """
        return sample_texts(self, conditions, count, seed, **options)

    def preview(self, conditions: Sequence[str], seed: int) -> list[str]:
        """One sampled continuation per prompt, up to 64 tokens."""
        return [drawn[0] for drawn in self.sample(conditions, 1, seed)]

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Adds summed log-probabilities, lengths and, where computed, sequential KL."""
        out = super().row_metrics(scores, losses)
        sides = ("chosen", "rejected")[: scores.logratios.shape[1]]
        columns = {"{}_logp": scores.sum_logps, "length_{}": scores.lengths, "{}_kl": scores.kl}
        for pattern, values in columns.items():
            if values is not None:
                out |= {pattern.format(side): values[:, i].detach() for i, side in enumerate(sides)}
        return out

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids with implicit rewards (B, K) and summed log-probabilities (B, K)."""
        scores = self.score(batch)
        assert scores.sum_logps is not None
        return {"index": batch["index"], "rewards": self.objective.rewards(scores), "logps": scores.sum_logps}
