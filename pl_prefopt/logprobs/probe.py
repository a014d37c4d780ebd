"""What a network does with a few tokens: the ground on which a family uses a layout or refuses a model.

Nothing here goes by the name of a model. A probe of some sixty tokens is scored in every layout and compared, position
by position, with the model's own logits of each row alone. The weights of a fresh model are so small that attention
hardly matters and a fault would hide in rounding, so small models are probed with strong random weights too, on a
float32 copy; the network itself is never changed.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.family import base_model
from pl_prefopt.logprobs.layout import Tokens
from pl_prefopt.utilities.modes import disable_dropout, drops_units

PROMPT = 40
"""Tokens of the probe's prompt: a window up to this length shows its effect in the probe."""
_COMPLETIONS = (7, 3, 5)
_LARGEST_COPY = 100_000_000
_EXACT = (torch.float32, torch.float64)
_WINDOW = re.compile(r"window|chunk|block_size|local|index_topk|budget|floor")
_NO_WINDOW = re.compile(
    r"pattern|layer|block[s_]t|num_|feed_forward|experts|head|audio|vision|speech|tokenizer|ids$|token_id"
)


def probe_tokens(network: nn.Module, longest: float = math.inf, prompts: int = 1) -> Tokens:
    """Prompts with three completions of different lengths each, a group together at most `longest` tokens.

    Special tokens do not occur, since models treat the placeholder of an image or the padding token differently.
    """
    config = base_model(network).config
    text = config.get_text_config()
    named = [value for c in (config, text) for name, value in vars(c).items() if name.endswith("token_id")]
    special = {i for value in named for i in (value if isinstance(value, (list, tuple)) else [value])}
    words = [i for i in range(min(text.vocab_size, 1000)) if i not in special] or [0]
    lengths = _COMPLETIONS if longest >= 24 else (2, 1, 1)
    prompt = int(min(PROMPT, longest - sum(lengths)))
    device = next(network.parameters()).device
    g = torch.Generator().manual_seed(1)
    size = prompts * (prompt + len(lengths) * max(lengths))
    ids = torch.tensor(words)[torch.randint(len(words), (size,), generator=g)].to(device)
    return Tokens(
        ids[: prompts * prompt].view(prompts, prompt),
        torch.tensor([prompt // (b + 1) for b in range(prompts)], device=device),
        ids[prompts * prompt :].view(prompts, len(lengths), -1),
        torch.tensor([lengths] * prompts, device=device),
    )


@torch.no_grad()
def strong_copy(network: nn.Module) -> nn.Module | None:
    """A float32 copy on the CPU without dropout whose weights are so strong that every part of the model matters.

    None for large, sharded and quantised networks, and for those that cannot be copied. A large network is probed as it
    is: trained weights are strong, and so are random ones where many hidden units add up.
    """
    parameters = list(network.parameters())
    if sum(p.numel() for p in parameters) > _LARGEST_COPY:
        return None
    if any(hasattr(p, "full_tensor") or not p.is_floating_point() or p.is_meta for p in parameters):
        return None
    try:
        twin = copy.deepcopy(network).cpu().float().eval()
    except (RuntimeError, TypeError, ValueError):
        return None
    disable_dropout(twin)
    g = torch.Generator().manual_seed(0)
    for p in twin.parameters():
        if p.dim() >= 2:
            deviation = max(1.2 / math.sqrt(min(p.shape[-1], 64)), float(p.std()))
            p.uniform_(-1.7 * deviation, 1.7 * deviation, generator=g)
        else:
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return twin


@contextmanager
def busy_adapters(network: nn.Module) -> Iterator[None]:
    """Run a block with random values in adapters, which start at zero and would hide how the model calls them."""
    zero = [
        p
        for p in network.parameters()
        if p.requires_grad and p.dim() >= 2 and p.is_floating_point() and not hasattr(p, "full_tensor") and not p.any()
    ]
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in zero:
            p.copy_(0.1 * torch.randn(p.shape, generator=g))
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zero:
                p.zero_()


@contextmanager
def training_mode(network: nn.Module) -> Iterator[None]:
    """Run a block in training mode; every module returns to the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def difference(values: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Distance of vectors (..., D) relative to their length: the largest of all positions; infinite for NaN.

    In half precision that of four positions out of five, since there a router may send single tokens to other experts.
    """
    gap = (values.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-30)
    gap = gap.nan_to_num(nan=math.inf).flatten().sort().values
    if not gap.numel():
        return 0.0
    return float(gap[-1] if dtype in _EXACT else gap[int(0.8 * (gap.numel() - 1))])


def rounding(dtype: torch.dtype) -> float:
    """The relative difference up to which two ways of computing states of this dtype count as the same."""
    return 1e-3 if dtype in _EXACT else 5e-2


@contextmanager
def exact_products() -> Iterator[None]:
    """Run a block with float32 products in full precision, whatever the user allows for training."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


def apply_head(hidden: Tensor, head: Head) -> Tensor:
    """(..., V) float32 logits of hidden states (..., H), all at once: for probes and tests."""
    logits = hidden.float() @ head.weight.float().t()
    logits = logits if head.bias is None else logits + head.bias.float()
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def windows(network: nn.Module) -> set[int]:
    """Lengths in tokens that may bound what a position sees: windows, chunks, blocks, numbers of selected keys.

    They are read from the configuration, that of the text model inside it, and the layers, from whatever has such a
    name. One too many costs speed, one too few would cost correctness.
    """
    model = base_model(network)
    sources = [model.config.to_dict(), model.config.get_text_config().to_dict(), *(vars(m) for m in model.modules())]
    lengths: set[int] = set()
    for source in sources:
        for name, value in source.items():
            if _WINDOW.search(name) and not _NO_WINDOW.search(name):
                values = value.values() if isinstance(value, dict) else value
                values = list(values) if isinstance(values, (list, tuple)) or isinstance(value, dict) else [values]
                lengths |= {int(v) for v in values if isinstance(v, int) and v > 1}
    return lengths


def rope_limits(network: nn.Module) -> dict[str, int]:
    """Kinds of rotary positions that change with the longest row of a batch, with the length from which they do."""
    config = base_model(network).config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    limits: dict[str, int] = {}
    for entry in (parameters, *parameters.values()):
        kind = entry.get("rope_type", "") if isinstance(entry, dict) else ""
        if kind == "longrope" or ("dynamic" in kind and not entry.get("alpha")):
            length = int(entry.get("original_max_position_embeddings") or config.max_position_embeddings)
            limits[kind] = min(limits.get(kind, length), length)
    return limits


def key_limit(network: nn.Module) -> int | None:
    """Length from which a model keeps the highest-ranked keys only, by a rank that repeated tokens share.

    Ties then fall as the length of the row says, so padding changes the result.
    """
    return getattr(base_model(network).config.get_text_config(), "keep_window_size", None)


def learned_positions(network: nn.Module) -> int | None:
    """Rows of the table of learned positions, beyond which a token has none; None where positions are computed."""
    tables = [
        module.num_embeddings
        for name, module in base_model(network).named_modules()
        if isinstance(module, nn.Embedding)
        and re.search(r"(^|\.)(wpe|w?position(al)?_embed\w*|embed_positions|positions_embed)$", name)
    ]
    return min(tables) if tables else None


def dropped_router_loss(network: nn.Module) -> str | None:
    """What to tell the user of a mixture of experts whose auxiliary loss is not added to the objective."""
    config = base_model(network).config.get_text_config()
    names = [
        name
        for name, value in sorted(vars(config).items())
        if re.search(r"(router|aux)\w*_loss_coef\w*$|^aux_loss_alpha$", name) and isinstance(value, float) and value > 0
    ]
    if getattr(config, "output_router_logits", False) is True:
        names.append("output_router_logits")
    if not names:
        return None
    return (
        f"{type(base_model(network)).__name__} is a mixture of experts with {', '.join(names)} set: the objective is "
        "trained without the router's auxiliary loss. If experts fall out of use, freeze the router or train adapters."
    )


@torch.no_grad()
def networks_to_probe(network: nn.Module, call: Callable[[nn.Module], Tensor]) -> list[nn.Module]:
    """The network and, where it can be made and gives finite values, its strong copy.

    Args:
        network: the network that will be scored.
        call: its own logits on a probe.
    """
    twin = strong_copy(network)
    try:
        usable = twin is not None and bool(call(twin).isfinite().all())
    except Exception:  # kernels of a device, for instance
        usable = False
    return [network, twin] if usable and twin is not None else [network]


def check_training_mode(network: nn.Module, call: Callable[[], Tensor]) -> None:
    """Compare states in training mode, where the policy runs, with those in eval mode, where the reference runs.

    Raises:
        ValueError: they differ although dropout is off.
    """
    if drops_units(network):
        return
    with running(network):
        states = call()
        with training_mode(network):
            gap = difference(call(), states, states.dtype)
    if gap > rounding(states.dtype):
        refuse(
            network,
            f"the model must give the same states in training as in evaluation, but they differ by {gap:.2g} of their "
            "size, so policy and reference would disagree; set its jitter or noise to 0 in the configuration, and keep "
            "adapters off the layers that it calls in another way in training",
        )


@contextmanager
def running(network: nn.Module) -> Iterator[None]:
    """Say in one sentence what went wrong inside a model that cannot be called as it is here."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        refuse(
            network,
            f"the model must run on tokens alone, but its forward pass ended with {type(error).__name__}: {text}",
            error,
        )


def refuse_capacity(network: nn.Module) -> None:
    """Refuse a mixture whose experts drop what exceeds their capacity: a row would depend on the rest of its batch."""
    capacity = getattr(base_model(network).config.get_text_config(), "expert_capacity", None)
    if capacity:
        refuse(
            network,
            f"expert_capacity must be None, got {capacity}: experts skip tokens when a batch sends them more, so a row "
            "would depend on the rows beside it; take a mixture of experts without a capacity",
        )


def refuse_head(network: nn.Module, gap: float) -> NoReturn:
    """Refuse a model whose logits are not what its output layer makes of its hidden states."""
    refuse(
        network,
        f"hidden states times output layer must equal the model's logits, but they differ by {gap:.2g} of their size; "
        "its head does something that this library does not know",
    )


def refuse_padding(network: nn.Module, gap: float) -> NoReturn:
    """Refuse a model whose logits depend on the padding of its row."""
    refuse(network, f"padding must not matter, but it changes the logits by {gap:.2g} of their size")


def refuse(network: nn.Module, reason: str, cause: Exception | None = None) -> NoReturn:
    """Raise a ValueError that names the class of the model and the reason."""
    name = type(base_model(network)).__name__
    raise ValueError(f"{name}: {reason}. See docs/families.md for what is known to work.") from cause
