"""Is every family of transformers scored right, or refused with a reason?

    python -m benchmarks.families                      # all of them: some minutes
    python -m benchmarks.families --only llama gemma3  # these
    python -m benchmarks.families --sample             # those of the test suite

Each family is built tiny from its configuration, once with windows, chunks and blocks of 48 tokens (longer than what
`TextPreferenceModule` probes at its start) and once with 8, with tied and untied embeddings, all weights and LoRA.
The module checks the fresh model, whose weights are so small that faults hide in rounding; then all weights are made
strong, and prompts longer than every window are scored in training mode on the default path and in separate rows. The
largest difference to the model's own logits, each row alone and without padding, is printed in nats. The exit status is
1 if a family is silently wrong or ends in anything but a ValueError.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, logging
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as ENCODER_DECODER,
)

from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.logprobs.family import base_model
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import SimPO
from pl_prefopt.policies import CausalLM, Seq2SeqLM
from pl_prefopt.references import NoReference
from pl_prefopt.utilities.modes import eval_mode

VOCAB = 61
TOLERANCE = 1e-3
"""Nats per completion that rounding may cost; what exceeds it must vanish in float64."""
SAMPLE = (
    "gpt2", "gpt_neo", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "mixtral", "mamba", "lfm2",
    "bloom", "phi3", "t5",
)  # fmt: skip

_SIZES: dict[int, str] = {
    0: "pad_token_id",
    1: """num_key_value_heads swa_num_key_value_heads n_shared_experts first_k_dense_replace mamba_n_groups n_group
        topk_group bos_token_id is_decoder""",
    2: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads eos_token_id
        num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads num_experts_per_tok moe_topk
        top_k_experts num_experts_per_token moe_k moe_top_k linear_num_heads linear_num_key_heads
        linear_num_value_heads num_kv_shared_layers n_mamba_heads o_groups""",
    4: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth
        num_encoder_layers num_experts num_local_experts n_routed_experts moe_num_experts mamba_n_heads""",
    8: """hidden_size_per_layer_input laurel_rank mamba_d_state ssm_state_size state_size mamba_chunk_size chunk_size
        axial_pos_shape num_buckets rotary_dim""",
    16: """head_dim kv_channels d_kv swa_head_dim q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim index_n_heads index_head_dim o_lora_rank""",
    32: """hidden_size d_model n_embd dim model_dim emb_dim attention_hidden_size lru_width embedding_size dim_model
        embed_dim word_embed_proj_dim hidden_size_global adapter_in_dim adapter_out_dim adapter_input_size""",
    48: """intermediate_size moe_intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner dff dim_ff
        shared_expert_intermediate_size ffn_hidden_size expert_ffn_hidden_size intermediate_size_mlp feed_forward_size
        moe_shared_expert_intermediate_size shared_intermediate_size dense_intermediate_size""",
    VOCAB: "encoder_hash_byte_group_vocab vocab_size vocab_size_per_layer_input",
    256: """max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions
        position_embedding_size""",
}
SIZES = {name: value for value, names in _SIZES.items() for name in names.split()}
"""What a tiny model looks like: every name that the default configuration has, at whatever depth."""
WINDOWS = (
    "sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention", "local_radius",
    "keep_window_size", "sliding_window_size", "index_topk", "block_size", "attention_window", "floor_scale",
    "local_attention_window_len", "log_scaling_n_floor",
)  # fmt: skip
"""Names that take the window of the case where the default configuration has a number there."""
_ATTENTION = ("full_attention", "sliding_attention")
_GRANITE = {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4}
_INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 48,
    "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
}  # fmt: skip
OVERRIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "bailing_hybrid": {"n_group": 1, "topk_group": 1, "num_mtp_layers": 0},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "diffllama": {"num_key_value_heads": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _ATTENTION},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "dots3_note": {"text_config": {"head_dim": 32}},
    "dots3_note_text": {"head_dim": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "granite": _GRANITE,
    "granite_swa": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoe_swa": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hyperclovax": _GRANITE,
    "gemma3n": {"vision_config": {"architecture": "mobilenetv3_small_050"}},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "falcon_h1": {"lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "llama+dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        "max_position_embeddings": 64,
    },
    "phi3+longrope": {
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [3.0] * 8,
            "rope_theta": 1e4,
        },
    },
    "qwen2+window": {"use_sliding_window": True, "sliding_window": "window", "max_window_layers": 2},
    "mixtral+jitter": {"router_jitter_noise": 0.1},
    "bert+encoder": {"is_decoder": False},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "t5": {"decoder_start_token_id": 0},
}
"""What single families need beside; "window" stands for that of the case, a name with + is a variant of a family."""


def tiny(kind: str, window: int) -> dict[str, Any]:
    """Arguments of the configuration class `kind` for a model of four layers x 32."""
    family = kind.split("+")[0]
    own = {name: window if value == "window" else value for name, value in OVERRIDES.get(kind, {}).items()}
    return {"model_type": family, **_merged(_shrunk(CONFIG_MAPPING[family]().to_dict(), window), own)}


def _merged(options: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    deeper = {n: _merged(options[n], v) for n, v in own.items() if n.endswith("_config") and n in options}
    return options | own | deeper


def _shrunk(default: dict[str, Any], window: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in default.items():
        if isinstance(value, dict) and value and (name.endswith("config") or name in ("encoder", "decoder")):
            options[name] = {"model_type": value["model_type"]} if "model_type" in value else {}
            options[name] |= _shrunk(value, window)
        elif (
            name in SIZES
            and (value or name.endswith(("_id", "decoder")))
            and value is not None
            and not isinstance(value, (list, dict))
        ):
            options[name] = bool(SIZES[name]) if isinstance(value, bool) else SIZES[name]
        elif name in WINDOWS and isinstance(value, int) and value > 1:
            options[name] = window
    heads = default.get("num_attention_heads")
    if default.get("num_key_value_heads") in (heads, None) and "num_key_value_heads" in default:
        options["num_key_value_heads"] = 2
    for name in ("layer_types", "layers_block_type"):
        if isinstance(default.get(name), list):
            kinds = list(dict.fromkeys(default[name]))
            options[name] = [kinds[i % len(kinds)] for i in range(max(4, len(kinds)))]
            options["num_hidden_layers"] = len(options[name])
    return options


@dataclass(frozen=True)
class Case:
    """One way to build and train a family."""

    window: int
    lora: bool = False
    tied: bool = False


CASES = (Case(48), Case(8, tied=True), Case(48, lora=True), Case(8, lora=True, tied=True))


def policy(kind: str, case: Case, encoder_decoder: bool) -> CausalLM:
    """Builder of one tiny model."""
    config = _tied(tiny(kind, case.window), case.tied)
    if encoder_decoder:
        config.setdefault("decoder_start_token_id", 0)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} if case.lora else None
    return (Seq2SeqLM if encoder_decoder else CausalLM)(config=config, lora=lora)


def _tied(options: dict[str, Any], tied: bool) -> dict[str, Any]:
    inner = {name: _tied(value, tied) for name, value in options.items() if name in ("text_config", "decoder")}
    return options | inner | {"tie_word_embeddings": tied}


@torch.no_grad()
def strengthen(network: nn.Module) -> None:
    """Random weights under which every layer matters, in the place of those of a fresh model."""
    g = torch.Generator().manual_seed(5)
    for p in network.parameters():
        noise = torch.randn(p.shape, generator=g)
        if p.dim() >= 2:
            p.copy_(noise * 1.5 / min(p.shape[-1], p.shape[-2] if p.shape[-2] > 1 else 64) ** 0.5)
        else:
            p.add_(0.3 * noise)


def batch(prompts: tuple[int, ...], completions: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    """Rows of random tokens with these lengths, padded on the right."""
    g = torch.Generator().manual_seed(3)
    rows, count = len(prompts), len(completions[0])
    length = torch.tensor(completions)
    return {
        "prompt_ids": torch.randint(3, 50, (rows, max(prompts)), generator=g),
        "prompt_mask": torch.arange(max(prompts)) < torch.tensor(prompts)[:, None],
        "completion_ids": torch.randint(3, 50, (rows, count, int(length.max())), generator=g),
        "completion_mask": torch.arange(int(length.max())) < length[..., None],
        "index": torch.arange(rows),
    }


BATCHES = {
    "long prompts": batch((101, 60), ((9, 14), (20, 6))),
    "short rows": batch((12, 19), ((5, 7), (10, 6))),
    "long completions": batch((6, 3), ((60, 40), (7, 75))),
}


@torch.no_grad()
def plain_log_probs(network: Any, rows: dict[str, Tensor], encoder_decoder: bool) -> Tensor:
    """(B, K) log-probabilities of the completions from the model's own logits, each row alone and unpadded."""
    sums = torch.zeros(rows["completion_mask"].shape[:2], dtype=torch.float64)
    for b in range(sums.shape[0]):
        prompt = rows["prompt_ids"][b, rows["prompt_mask"][b]][None]
        for k in range(sums.shape[1]):
            completion = rows["completion_ids"][b, k, rows["completion_mask"][b, k]][None]
            if encoder_decoder:
                config = network.config
                start = torch.tensor([[config.decoder_start_token_id]])
                logits = network(
                    input_ids=prompt,
                    decoder_input_ids=torch.cat([start, completion[:, :-1]], 1),
                    use_cache=False,
                ).logits
            else:
                logits = network(input_ids=torch.cat([prompt, completion], 1), use_cache=False).logits[
                    :, prompt.shape[1] - 1 : -1
                ]
            sums[b, k] = logits.double().log_softmax(-1).gather(-1, completion[..., None]).sum()
    return sums


@dataclass
class Result:
    """What came out for one family."""

    family: str
    layouts: str = "-"
    difference: float | None = None
    verdict: str = ""

    @property
    def bad(self) -> bool:
        """Silently wrong, or an end that does not say why."""
        return self.verdict.startswith(("WRONG", "crash"))


def sweep_family(kind: str, encoder_decoder: bool, cases: Sequence[Case] = CASES) -> Result:
    """All cases and batches of one family; the first that is not right decides."""
    result = Result(f"{kind} (encoder-decoder)" if encoder_decoder else kind)
    layouts: dict[str, None] = {}
    for case in cases:
        try:
            module = TextPreferenceModule(
                policy(kind, case, encoder_decoder), objective=SimPO(), reference=NoReference()
            )
            module.configure_model()
        except Exception as error:
            if case.lora or case.tied:  # peft or transformers refuses it, in words of its own
                continue
            result.verdict = f"cannot be built: {_line(error)}"
            return result
        try:
            with torch.no_grad():
                plain_log_probs(module.policy.eval(), BATCHES["long prompts"], encoder_decoder)
        except Exception as error:
            if case.lora:  # an adapter on a layer that returns more than a tensor, for instance
                continue
            result.verdict = f"cannot be run by transformers: {_line(error)}"
            return result
        try:
            for name, gap, shared in differences(module, case, encoder_decoder):
                result.difference = max(result.difference or 0.0, gap)
                layouts.setdefault(_layout(module, shared, case))
                if not gap <= TOLERANCE:
                    result.verdict = f"WRONG: {name}, {case}, {_layout(module, shared, case)}: {gap:.3g} nats"
                    return result
        except ValueError as error:
            result.layouts = ", ".join(layouts) or "-"
            result.verdict = f"{'right without adapters, with them ' if case.lora else ''}refused: {_line(error)}"
            return result
        except Exception as error:
            result.verdict = f"crash: {_line(error)} ({traceback.extract_tb(error.__traceback__)[-1].name}, {case})"
            return result
    result.layouts = ", ".join(layouts)
    result.verdict = "right"
    return result


def differences(module: TextPreferenceModule, case: Case, encoder_decoder: bool) -> Iterator[tuple[str, float, bool]]:
    """Largest difference in nats, and whether the prefix was shared: every batch, by default and in separate rows."""
    family, policy = module.family, module.policy
    with eval_mode(policy):
        family.check(policy)
    strengthen(policy)
    for name, rows in BATCHES.items():
        gap, shared = difference(module, rows, encoder_decoder)
        yield name, gap, shared
        if shared and isinstance(family, CausalFamily):
            family.prefix_honoured = False
            yield name, *difference(module, rows, encoder_decoder)
            family.prefix_honoured = True


def difference(module: TextPreferenceModule, rows: dict[str, Tensor], encoder_decoder: bool) -> tuple[float, bool]:
    """Largest difference of one batch in nats, and whether prompts were shared.

    What exceeds rounding in float32 is computed again in float64, since deep recurrences amplify rounding.
    """
    gap, shared = _difference(module, rows, encoder_decoder)
    if gap <= TOLERANCE:
        return gap, shared
    experts = getattr(base_model(module.policy), "set_experts_implementation", None)
    if experts is not None:
        experts("eager")  # the grouped kernels know no float64
    module.policy.double()
    try:
        exact, _ = _difference(module, rows, encoder_decoder)
    except RuntimeError:
        exact = gap
    module.policy.float()
    return (TOLERANCE if exact < 1e-6 else gap), shared


@torch.no_grad()
def _difference(module: TextPreferenceModule, rows: dict[str, Tensor], encoder_decoder: bool) -> tuple[float, bool]:
    with eval_mode(module.policy):
        expected = plain_log_probs(module.policy, rows, encoder_decoder)
    module.train()
    inputs = module.prepare(rows)
    scores = module.measure(module.policy, inputs).logps.sum(-1)
    shared = not encoder_decoder and inputs.rows.attention_mask.dim() == 4
    return float((scores - expected).abs().nan_to_num(nan=float("inf")).max()), shared


def _layout(module: TextPreferenceModule, shared: bool, case: Case) -> str:
    family = module.family
    if not isinstance(family, CausalFamily):
        return "encoder and decoder"
    if not shared:
        return "separate rows"
    return "shared prefix" if family.longest_shared_row == float("inf") else "shared prefix within the window"


def _line(error: Exception) -> str:
    return f"{'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{' '.join(str(error).split())}"[:300]


def _child(kind: str, encoder_decoder: bool, answer: Connection) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    warnings.simplefilter("ignore")
    answer.send(sweep_family(kind, encoder_decoder))


def in_child(kind: str, encoder_decoder: bool, seconds: float) -> Result:
    """One family in a process of its own, so that none can hang or end the sweep."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, encoder_decoder, writer))
    process.start()
    writer.close()
    try:
        if reader.poll(seconds):
            return reader.recv()
        return Result(kind, verdict=f"crash: not done after {seconds:.0f} seconds")
    except EOFError:
        return Result(kind, verdict=f"crash: the process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a family is silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="model types")
    parser.add_argument("--sample", action="store_true", help="the families of the test suite")
    parser.add_argument("--seconds", type=float, default=180, help="limit of one family")
    options = parser.parse_args(arguments)
    wanted = options.only or (SAMPLE if options.sample else None)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    causal = sorted([*CAUSAL, *(name for name in OVERRIDES if "+" in name)])
    jobs = [(kind, False) for kind in causal] + [(kind, True) for kind in ENCODER_DECODER]
    bad = 0
    print("| family | layouts | largest difference, nats | verdict |\n|---|---|---|---|")
    for kind, encoder_decoder in jobs:
        if wanted is None or kind.split("+")[0] in wanted or kind in wanted:
            result = in_child(kind, encoder_decoder, options.seconds)
            bad += result.bad
            gap = "-" if result.difference is None else f"{result.difference:.1g}"
            print(f"| {result.family} | {result.layouts} | {gap} | {result.verdict} |", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
