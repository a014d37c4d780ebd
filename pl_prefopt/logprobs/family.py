"""How a token model is called: the layout of its rows, the states that predict tokens, its output layer, sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.layout import Tokens
from pl_prefopt.utilities.digests import json_digest

RowsT = TypeVar("RowsT")


class TokenFamily(ABC, Generic[RowsT]):
    """A kind of token model. Policies give theirs by `family()`, as denoisers do."""

    @abstractmethod
    def check(self, *networks: nn.Module) -> None:
        """Compare, on a probe, the log-probabilities of every layout with those of the model's own logits.

        Args:
            networks: all that will be scored with the same rows: the policy, and a reference of another kind.

        Raises:
            ValueError: they differ, so log-probabilities taken from the model would be wrong.
        """

    @abstractmethod
    def rows(self, network: nn.Module, tokens: Tokens, extra: dict[str, Tensor] | None = None) -> RowsT:
        """Lay tokens out for one forward pass.

        Args:
            network: the policy, whose configuration limits the layouts.
            tokens: prompts and completions.
            extra: further inputs of the network, such as pixels; rows first.

        Raises:
            ValueError: `extra` for a family that takes none.
        """

    @abstractmethod
    def predicting_states(self, network: nn.Module, rows: RowsT) -> Tensor:
        """(B, K, T, H) hidden states from which the output layer predicts each completion token."""

    @abstractmethod
    def output_head(self, network: nn.Module) -> Head:
        """The output layer.

        Raises:
            ValueError: there is none, or adapters sit on it.
        """

    @abstractmethod
    def sample(
        self, network: nn.Module, prompts: Sequence[Sequence[int]], pad: int, options: dict[str, Any]
    ) -> list[list[int]]:
        """One call of the model's own `generate`; the new tokens of each row, without what it begins with."""


def base_model(network: nn.Module) -> Any:
    """The transformers model inside `network`: the network itself, or what a peft wrapper holds."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network  # pyright: ignore[reportCallIssue]


def configuration_digest(network: nn.Module) -> str:
    """Key of a model's configuration, without what depends on where and by which version it was loaded."""
    config = base_model(network).config.to_dict()
    volatile = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    return json_digest({name: value for name, value in config.items() if name not in volatile})


def output_layer(network: nn.Module) -> nn.Module:
    """The output embeddings, as they are used: what `modules_to_save` trains, where it trains them.

    Raises:
        ValueError: no output layer, or adapters on it.
    """
    model = base_model(network)
    layer = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output layer: a language model is needed")
    if hasattr(layer, "base_layer"):
        raise ValueError(
            "an adapter sits on the output layer; take 'lm_head' out of lora.target_modules, or train it whole through "
            "lora.modules_to_save"
        )
    if hasattr(layer, "modules_to_save"):
        layer = layer.original_module if layer.disable_adapters else layer.modules_to_save[layer.active_adapters[0]]
    return layer
