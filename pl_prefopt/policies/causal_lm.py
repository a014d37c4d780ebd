"""Causal language models by name or from a configuration, with or without adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from pl_prefopt.adapters import check_lora
from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.logprobs.family import TokenFamily
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.checksums import check_complete, check_folder
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.files import resolve_package
from pl_prefopt.utilities.modes import disable_dropout
from pl_prefopt.utilities.suggestions import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class CausalLM(PolicyBuilder):
    """A transformers causal language model, loaded by name or built from its configuration.

    Args:
        pretrained: hub name, folder, or `package://<package>/<folder>`; exactly one of `pretrained` and `config` is
            given.
        config: `model_type` plus arguments of that family's configuration class, for a randomly initialised model,
            e.g. {"model_type": "qwen2", "hidden_size": 64, ...}.
        revision: branch, tag or commit of `pretrained`.
        dtype: "float32", "bfloat16" or "float16", the dtype of the weights.
        attention: attention implementation of transformers ("sdpa", "eager", "flash_attention_2"); None: its choice.
        lora: arguments of peft.LoraConfig; None trains all weights.
        adapter: folder or hub name of a trained adapter to continue from.
        quantization: arguments of transformers.BitsAndBytesConfig, for QLoRA (needs bitsandbytes and a GPU; not run in
            this project's own tests).
        dropout: keep the model's dropout. Off by default, so that policy and reference agree at the first step.
        gradient_checkpointing: recompute activations in backward.
        trust_remote_code: run code that comes with the checkpoint; off unless you ask.
        seed: seed of the random initialisation of `config` models and of new adapters.

    Raises:
        ValueError: both or neither of `pretrained` and `config`, an unknown dtype, model type or adapter option.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    new_layers: ClassVar[tuple[str, ...]] = ()
    """Layers that a pretrained model may lack, and that then begin at random."""
    """Class of transformers that builds the network."""
    task: ClassVar[str] = "CAUSAL_LM"
    """Its name in peft."""
    settings: ClassVar[dict[str, Any]] = {}
    """What its configuration must say."""

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    revision: str | None = None
    dtype: str = "float32"
    attention: str | None = None
    lora: dict[str, Any] | None = None
    adapter: str | None = None
    quantization: dict[str, Any] | None = None
    dropout: bool = False
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError(
                f"give exactly one of pretrained (a name or folder) and config (a dict with model_type); got "
                f"pretrained={self.pretrained!r}, config={self.config!r}"
            )
        dtype_named(self.dtype)
        if self.config is not None and "model_type" not in self.config:
            raise ValueError(
                f"config needs a model_type such as 'qwen2', 'llama' or 'gpt2'; got keys {sorted(self.config)}"
            )
        if self.lora is not None and self.adapter is not None:
            raise ValueError("give lora (a new adapter) or adapter (a trained one), not both")
        check_lora(self.lora)

    def family(self) -> TokenFamily[Any]:
        """How the network is called."""
        return CausalFamily()

    def __call__(self) -> nn.Module:
        """Build the model; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._from_config() if self.config is not None else self._from_pretrained()
            if self.quantization is not None:
                from peft import prepare_model_for_kbit_training

                network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
            if self.gradient_checkpointing:
                network.gradient_checkpointing_enable({"use_reentrant": False})
            wrapped = self._with_adapter(network)
        if not self.dropout:
            disable_dropout(wrapped)
        return wrapped.train()

    def _from_config(self) -> PreTrainedModel:
        from transformers import CONFIG_MAPPING, AutoConfig

        options = {**(self.config or {}), **self.settings}
        kind = options.pop("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            hint = did_you_mean(str(kind), list(CONFIG_MAPPING))
            raise ValueError(f"config.model_type must be a model type of transformers, got {kind!r}. {hint}".rstrip())
        try:
            config = AutoConfig.for_model(kind, **options)
        except Exception as error:  # each family raises what it likes
            raise ValueError(f"config must hold what {kind} accepts, got {options} ({error})") from error
        if not options:  # the family's defaults, which are those of its published model
            with torch.device("meta"):
                size = sum(p.numel() for p in self._auto().from_config(config).parameters())
            if size > 1e9:
                raise ValueError(
                    f"config must give sizes beside model_type (hidden_size, num_hidden_layers, ...), got only {kind}, "
                    f"which means {size / 1e9:.1f} billion random weights. Add sizes, or name a trained model instead"
                )
        return self._auto().from_config(config, dtype=dtype_named(self.dtype), attn_implementation=self.attention)

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _from_pretrained(self) -> PreTrainedModel:
        extra: dict[str, Any] = dict(self.settings)
        if self.quantization is not None:
            from transformers import BitsAndBytesConfig

            extra["quantization_config"] = BitsAndBytesConfig(**self.quantization)
        assert self.pretrained is not None
        folder = resolve_package(self.pretrained)
        check_folder(folder)
        network, loading = self._auto().from_pretrained(
            folder,
            revision=self.revision or "main",
            dtype=dtype_named(self.dtype),
            attn_implementation=self.attention,
            trust_remote_code=self.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        )
        check_complete(self.pretrained, network, loading["missing_keys"], self.new_layers)
        return network

    def _with_adapter(self, network: PreTrainedModel) -> nn.Module:
        if self.adapter is not None:
            from peft import PeftModel

            check_folder(self.adapter)
            return PeftModel.from_pretrained(network, self.adapter, is_trainable=True, use_safetensors=True)
        if self.lora is None:
            return network
        from peft import LoraConfig, get_peft_model

        return get_peft_model(network, LoraConfig(**{"task_type": self.task, **self.lora}))
