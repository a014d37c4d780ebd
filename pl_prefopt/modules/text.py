"""`TextPreferenceModule`: language models on preference pairs and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor, nn

from pl_prefopt.logprobs import Head, score_tokens
from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.logprobs.encoder_decoder import EncoderDecoderFamily
from pl_prefopt.logprobs.family import TokenFamily, base_model, configuration_digest
from pl_prefopt.logprobs.generation import generate
from pl_prefopt.logprobs.layout import Tokens, read_tokens
from pl_prefopt.logprobs.probe import dropped_router_loss
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.evaluation import Batch
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.references import AutoReference, CachedReference, Reference
from pl_prefopt.references.cache import CachedCollate, CachedRows, LogpCache, in_order_of_length, lookup
from pl_prefopt.scores import PairScores, data_columns
from pl_prefopt.utilities.digests import tensors_digest
from pl_prefopt.utilities.modes import eval_mode


@dataclass(frozen=True)
class TokenInputs:
    """What policy and reference share.

    Args:
        tokens: prompts and completions.
        rows: their layout, as the family made it.
        columns: data columns of the batch.
        list_mask: (B, K) bool, False for the padding of ragged lists.
        reference_logps: (B, K, T) where the rows brought them from a cache.
    """

    tokens: Tokens
    rows: Any
    columns: dict[str, Tensor]
    list_mask: Tensor | None
    reference_logps: Tensor | None


class TokenMeasurement(NamedTuple):
    """Token log-probabilities (B, K, T) of one network, zero beyond each length.

    `kl` and `collision` are the policy's, where the objective needs them. `hidden` (B, K, T, H) and `head` are the
    reference's, where the policy's pass computes KL(ref || policy) from them.
    """

    logps: Tensor
    kl: Tensor | None = None
    collision: Tensor | None = None
    hidden: Tensor | None = None
    head: Head | None = None


class TextPreferenceModule(PreferenceModule[TokenInputs, TokenMeasurement]):
    """Preference optimization of a language model, causal or encoder-decoder, with any objective of the library.

    The output layer runs at completion positions only; prompts longer than completions are read once per pair
    (shared-prefix rows, or the encoder of an encoder-decoder); the reference runs in the same dtype and through the
    same path as the policy.

    Args:
        policy: what to train, e.g. `CausalLM(pretrained="Qwen/Qwen2.5-0.5B")` or `Seq2SeqLM(...)`.
        objective: DPO, TDPO, LDDPO, ... or a mixture; None: DPO(). (With an instance as default, jsonargparse would
            merge its arguments into whichever class the YAML names.)
        reference: AutoReference, FrozenCopy, AdapterOff, AdapterCopy, CachedReference or NoReference.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped per optimizer step.
        shared_prefix: of causal models: True, False, or None: on where the model honours it and prompts are the longer
            part.
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
        if isinstance(self.reference_config, CachedReference) and "kl" in self.objective.needs:
            raise ValueError(
                f"objective {type(self.objective).__name__} needs the reference's full distribution, which a "
                "cache of token log-probabilities cannot give; use reference: AutoReference"
            )
        self._family: TokenFamily[Any] | None = None

    # life cycle

    @property
    def family(self) -> TokenFamily[Any]:
        """How the network is called: what the policy builder says, or what the network's configuration says.

        Raises:
            ValueError: the policy is no language model.
        """
        if self._family is None:
            named = getattr(self.policy_builder, "family", None)
            if named is not None:
                family = named()
            else:
                config = base_model(self.policy).config
                family = EncoderDecoderFamily() if config.is_encoder_decoder else CausalFamily()
            if not isinstance(family, TokenFamily):
                kind = type(self.policy_builder).__name__
                raise ValueError(f"policy must be a language model such as CausalLM or Seq2SeqLM, got {kind}")
            if isinstance(family, CausalFamily):
                family.shared_prefix = self.shared_prefix
            self._family = family
        return self._family

    def configure_model(self) -> None:
        """Build policy and reference, once.

        Raises:
            ValueError: an encoder-decoder under ModelParallelStrategy.
        """
        super().configure_model()
        if self.device_mesh is not None and isinstance(self.family, EncoderDecoderFamily):
            raise ValueError(
                "strategy must be ddp or a single device for encoder-decoders, got ModelParallelStrategy, which cannot "
                "shard embeddings that encoder and decoder share"
            )

    def setup(self, stage: str) -> None:
        """Check the vocabulary, and the output layer and layouts on the model that will be used."""
        super().setup(stage)
        self.configure_model()
        self._check_vocabulary()
        with eval_mode(self.policy):
            self.family.check(self.policy, *self._other_reference())
        warning = dropped_router_loss(self.policy)
        if stage == "fit" and warning is not None:
            rank_zero_warn(warning)
        if self.reference is not None and self.reference.cached:
            self._attach_reference_column()

    def _other_reference(self) -> list[nn.Module]:
        """The reference's network where it is another kind of model, since it is scored with the policy's rows."""
        if self.reference is None:
            return []
        with self.reference.use(self.policy) as network:
            same = configuration_digest(network) == configuration_digest(self.policy)
        return [] if same else [network]

    def _check_vocabulary(self) -> None:
        size = getattr(getattr(self.trainer, "datamodule", None), "vocab_size", None)
        rows = self.policy.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
        if size is not None and size > rows:
            raise ValueError(
                f"the tokenizer has {size} tokens but the model embeds {rows}; use the model's own tokenizer, or set "
                f"config.vocab_size to at least {size}"
            )

    # the cached reference: a column of the row

    def _attach_reference_column(self) -> None:
        """Let the rows of the datamodule bring reference log-probabilities; they do as soon as a cache is filled."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "datasets") or not hasattr(datamodule, "collate"):
            raise ValueError(
                "CachedReference needs a datamodule with `datasets` (random access) and `collate`, such as "
                "TextPreferenceDataModule without streaming; or use reference: AutoReference"
            )
        for name, rows in datamodule.datasets.items():
            if not isinstance(rows, CachedRows):
                datamodule.datasets[name] = CachedRows(rows)
        if not isinstance(datamodule.collate, CachedCollate):
            datamodule.collate = CachedCollate(datamodule.collate)

    def on_fit_start(self) -> None:
        """Fill the reference cache of the training and validation sets before the first step."""
        super().on_fit_start()
        self._fill_reference_column("train", "val")

    def on_validation_start(self) -> None:
        """Fill the cache of the validation set for a stand-alone validation."""
        if not self.trainer.sanity_checking:
            self._fill_reference_column("val")

    def on_test_start(self) -> None:
        """Fill the cache of the test set."""
        self._fill_reference_column("test")

    def _fill_reference_column(self, *stages: str) -> None:
        """Compute what is missing for the data sets of these stages, over all ranks, with a progress bar.

        Raises:
            ValueError: training rows without random access, or a cache of other weights, tokens or dtype.
        """
        if not isinstance(self.reference_config, CachedReference) or self.reference is None:
            return
        trainer, datamodule = self.trainer, getattr(self.trainer, "datamodule", None)
        if "train" in stages and "train" not in datamodule.datasets:  # type: ignore[union-attr]
            raise ValueError(
                "CachedReference needs random access to the training rows, but they are streamed: set streaming: "
                "false, or use reference: AutoReference"
            )
        todo = {
            name: rows
            for name, rows in datamodule.datasets.items()  # type: ignore[union-attr]
            if name.split("/")[0] in stages and isinstance(rows, CachedRows) and rows.cache is None
        }
        if not todo:
            return
        weights = tensors_digest(self.reference.weights(self.policy))
        with self.reference.use(self.policy) as network:
            configuration = configuration_digest(network)
        dtype = f"{next(self.policy.parameters()).dtype}/{trainer.precision}"

        def score(rows: list[Any]) -> tuple[Tensor, Tensor]:
            batch = move_data_to_device(datamodule.collate(rows), self.device)  # type: ignore[union-attr]
            with trainer.precision_plugin.forward_context():
                return self.reference_logps(batch)

        for name, rows in todo.items():
            key = {"weights": weights, "configuration": configuration, "tokens": rows.digest(), "dtype": dtype}
            cache = LogpCache(Path(self.reference_config.path) / name.replace("/", "__"), key, len(rows))
            trainer.strategy.barrier(f"reference cache {name}: opened")
            cache.fill(
                in_order_of_length(rows.rows, score), rank=trainer.global_rank, world_size=trainer.world_size,
                hidden=not trainer.is_global_zero,
            )  # fmt: skip
            trainer.strategy.barrier(f"reference cache {name}: filled")
            cache.load()
            rows.cache = cache

    def reference_logps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, K, T) reference log-probabilities per token and (B, K) lengths, computed now."""
        inputs = self.prepare(batch)
        reference = self.measure_reference(inputs)
        assert reference is not None
        return reference.logps, inputs.tokens.length

    # scoring

    def prepare(self, batch: Batch) -> TokenInputs:
        """Tokens without padding, and their layout."""
        tokens = read_tokens(batch)
        if self.training and "rejected" not in self.objective.needs:
            tokens = tokens.first(1)
        return TokenInputs(
            tokens,
            self.family.rows(self.policy, tokens),
            data_columns(batch),
            batch.get("list_mask"),
            lookup(batch, tokens.length),
        )

    def measure_reference(self, inputs: TokenInputs) -> TokenMeasurement | None:
        """The cached values where the rows brought them, else those of the reference network."""
        if self.needs_reference and inputs.reference_logps is not None:
            return TokenMeasurement(inputs.reference_logps)
        return super().measure_reference(inputs)

    def measure(
        self, network: nn.Module, inputs: TokenInputs, reference: TokenMeasurement | None = None
    ) -> TokenMeasurement:
        """Token log-probabilities of the completions; the output layer runs at completion positions only."""
        needs, of_policy = self.objective.needs, self.measures_policy(reference)
        hidden, head = self.family.predicting_states(network, inputs.rows), self.family.output_head(network)
        shape = inputs.tokens.mask.shape
        scores = score_tokens(
            hidden.flatten(0, 1),
            head,
            inputs.tokens.completion.flatten(0, 1),
            inputs.tokens.mask.flatten(0, 1),
            ref_hidden=None if reference is None or reference.hidden is None else reference.hidden.flatten(0, 1),
            ref_head=None if reference is None else reference.head,
            collision="collision" in needs and of_policy,
            chunk_size=self.chunk_size,
            vocab_chunk_size=self.vocab_chunk_size,
        )
        logps, kl, collision = (None if values is None else values.view(shape) for values in scores)
        assert logps is not None
        if "kl" in needs and not of_policy:
            return TokenMeasurement(
                logps, hidden=hidden, head=Head(head.weight.detach(), head.bias, head.scale, head.softcap)
            )
        return TokenMeasurement(logps, kl, collision)

    def assemble(self, inputs: TokenInputs, policy: TokenMeasurement, reference: TokenMeasurement | None) -> PairScores:
        """Log-probabilities reduced over tokens as the objective asks, for policy and reference alike."""
        mask, length = inputs.tokens.mask, inputs.tokens.length
        weights = inputs.columns.get("token_weights")
        options = () if weights is None else (weights[:, : mask.shape[1], : mask.shape[2]],)
        logps = self.objective.reduce_tokens(policy.logps, mask, *options)
        ref_logps = None if reference is None else self.objective.reduce_tokens(reference.logps, mask, *options)
        return PairScores(
            logratios=logps if ref_logps is None else logps - ref_logps,
            logps=logps,
            ref_logps=ref_logps,
            sum_logps=policy.logps.sum(-1),
            lengths=length,
            kl=None if policy.kl is None else policy.kl.sum(-1),
            collision=None if policy.collision is None else policy.collision.sum(-1) / length.clamp(min=1),
            mask=inputs.list_mask,
            columns=inputs.columns,
        )

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden states that predict each token of the chosen and of the rejected completion; no output layer runs."""
        tokens = read_tokens(batch)
        hidden = self.family.predicting_states(self.policy, self.family.rows(self.policy, tokens))
        mask = tokens.mask
        return hidden[:, 0], mask[:, 0], hidden[:, 1], mask[:, 1]

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Adds summed log-probabilities, lengths and, where computed, sequential KL."""
        metrics = super().row_metrics(scores, losses)
        sides = ("chosen", "rejected")[: scores.logratios.shape[1]]
        columns = {"{}_logp": scores.sum_logps, "length_{}": scores.lengths, "{}_kl": scores.kl}
        for pattern, values in columns.items():
            if values is not None:
                metrics |= {pattern.format(side): values[:, i].detach() for i, side in enumerate(sides)}
        return metrics

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids with implicit rewards (B, K) and summed log-probabilities (B, K)."""
        scores = self.score(batch)
        assert scores.sum_logps is not None
        return {"index": batch["index"], "rewards": self.objective.rewards(scores), "logps": scores.sum_logps}

    # sampling

    def sample(self, conditions: Sequence[str], count: int, seed: int, **options: Any) -> list[list[str]]:
        """`count` sampled continuations per prompt; the same for the same seed and batch of prompts.

        Args:
            conditions: prompts; they are encoded as in training.
            count: K.
            seed: key of the draws.
            options: max_new_tokens (64), temperature (1), top_p (1), batch_size (16 prompts), as `generate` has them.

        Raises:
            ValueError: no datamodule with a tokenizer, or arguments that `generate` refuses.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        tokenizer = getattr(datamodule, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("sampling of texts needs a datamodule with a tokenizer, as TextPreferenceDataModule has")
        encode = getattr(datamodule, "prompt_ids", lambda prompt: tokenizer(prompt).input_ids)
        prompts = [encode(condition) for condition in conditions]
        with self.trainer.precision_plugin.forward_context():
            continuations = generate(
                self.policy, prompts, family=self.family, count=count, seed=seed, eos=tokenizer.eos_token_id,
                pad=tokenizer.pad_token_id, **options,
            )  # fmt: skip
        if isinstance(self.family, EncoderDecoderFamily):
            prompts = [[] for _ in prompts]  # the decoder's text does not continue the prompt's
        return [
            [_continuation(tokenizer, prompt, ids) for ids in rows]
            for prompt, rows in zip(prompts, continuations, strict=True)
        ]

    def preview(self, conditions: Sequence[str], seed: int) -> list[str]:
        """One sampled continuation per prompt, up to 64 tokens."""
        return [samples[0] for samples in self.sample(conditions, 1, seed)]


def _continuation(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    """Text of a continuation, with the whitespace that a tokenizer may drop at the beginning of a text."""

    def text(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    start, whole = text(prompt), text([*prompt, *ids])
    return whole[len(start) :] if whole.startswith(start) else text(ids)
