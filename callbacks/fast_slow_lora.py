"""Two adapters that chase each other, for preferences that drift (OFS-DPO, 2406.05534)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pl_prefopt.adapters import adapter_active, adapter_names, adapter_parameters, add_adapter_copy, has_adapters
from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.losses import fast_slow_loss

SLOW = "slow"


class FastSlowLoRA(pl.Callback):
    """Train a fast and a slow adapter on one policy; the better one of the last K steps is made the fast one.

    With margins z of the log-ratios: fast = l(beta z_F) + alpha l(beta (z_F - sg[z_S])), slow = l(beta z_S) - alpha
    l(beta (sg[z_F] - z_S)); loss = fast + slow, one optimizer whose step has two parameter groups, lr and ratio * lr,
    and one joint clip of gradients. Every K optimizer steps the adapter with the lower mean base loss l(beta z) takes
    the fast role (ties: no change): values and optimizer state change places, so the policy's own adapter is the fast
    one at all times, in validation and in exports. alpha, ratio and K are our assumptions, the paper gives none.

    How it works, since it goes beyond hooks: `setup` adds the adapter "slow" as a copy before the optimizer is made and
    puts another `training_step` in place of the module's, so its own loss is not used; `teardown` undoes that.
    Learning-rate schedules act on both adapters. Checkpoints hold both: load them with this callback, or use what
    AdapterExport writes. Costs two passes of policy and reference a step.

    Args:
        beta: inverse temperature, > 0.
        alpha: weight of the chasing terms, >= 0; 0 is two independent runs.
        ratio: learning rate of the slow adapter over that of the fast one, in (0, 1].
        every_n_steps: K, optimizer steps between role decisions, >= 1.
        clamp: bound of the logits, > 0; no gradient beyond it.
        adapter: name of the policy's own adapter.

    Raises:
        ValueError: settings out of range; in `setup`, a policy without adapters or with gradient checkpointing (whose
            recomputation would see the wrong adapter), manual optimisation, sharding; at the start of the fit, not
            exactly one optimizer or one without the slow adapter; a loss that is not finite.
        TypeError: the module lacks `policy` or `pair_logratios`.
    """

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.1,
        ratio: float = 0.3,
        every_n_steps: int = 100,
        clamp: float = 10.0,
        adapter: str = "default",
    ) -> None:
        for name, value in (("beta", beta), ("clamp", clamp)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if not alpha >= 0:
            raise ValueError(f"alpha must be >= 0, got {alpha}")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be >= 1, got {every_n_steps}")
        if adapter == SLOW:
            raise ValueError(f"adapter must be the policy's own; {SLOW!r} is the name of the added one")
        self.beta, self.alpha, self.ratio, self.clamp = beta, alpha, ratio, clamp
        self.every_n_steps, self.adapter = every_n_steps, adapter
        self.swaps = 0
        self._step = 0
        self._sums = torch.zeros(2)
        self._pending: list[Tensor] = []
        self._handles: list[Any] = []
        self._groups: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    @property
    def state_key(self) -> str:
        """Two instances with other settings have other keys."""
        return self._generate_state_key(adapter=self.adapter, every_n_steps=self.every_n_steps, ratio=self.ratio)

    # ---- wiring ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module, add the slow adapter, put the step of both adapters in place of the module's own."""
        pl_module.configure_model()
        require(pl_module, self, "policy", "pair_logratios")
        policy: Any = pl_module.policy
        self._check(policy, pl_module)
        if SLOW not in adapter_names(policy):
            add_adapter_copy(policy, self.adapter, SLOW)
        for p in adapter_parameters(policy, SLOW).values():
            p.requires_grad_(True)
        if stage == "fit":
            self._wrap(pl_module)

    def _check(self, policy: nn.Module, module: pl.LightningModule) -> None:
        if not has_adapters(policy) or self.adapter not in adapter_names(policy):
            names = sorted(adapter_names(policy)) if has_adapters(policy) else "no adapters"
            raise ValueError(
                f"FastSlowLoRA needs a policy with a peft adapter named {self.adapter!r}, found {names}; set the "
                "policy's `lora`, or name its adapter"
            )
        if any(getattr(m, "gradient_checkpointing", False) for m in policy.modules()):
            raise ValueError(
                "FastSlowLoRA: gradient checkpointing recomputes with the adapter that is active in backward; switch "
                "it off (gradient_checkpointing: false)"
            )
        if module.device_mesh is not None:
            raise ValueError("FastSlowLoRA does not shard; use strategy ddp, or one device")
        if not module.automatic_optimization:
            raise ValueError(f"FastSlowLoRA needs automatic optimisation; {type(module).__name__} has it off")

    def _wrap(self, module: pl.LightningModule) -> None:
        module.__dict__.pop("training_step", None)

        @functools.wraps(module.training_step)
        def step(batch: Any, *_: Any, **__: Any) -> Tensor:
            return self._training_step(module, batch)

        module.training_step = step  # type: ignore[method-assign]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own step back."""
        pl_module.__dict__.pop("training_step", None)
        self._release()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the optimizer and make its step use two groups."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"FastSlowLoRA needs exactly one optimizer, found {len(trainer.optimizers)}")
        (optimizer,) = trainer.optimizers
        held = {p for group in optimizer.param_groups for p in group["params"]}
        policy: Any = pl_module.policy
        slow = set(adapter_parameters(policy, SLOW).values())
        if not slow <= held:
            raise ValueError(
                "FastSlowLoRA: the optimizer does not hold the slow adapter; let configure_optimizers take the "
                "parameters of `policy` that require gradients when it is called, not before"
            )
        self._sums = self._sums.to(pl_module.device)
        self._handles = [
            optimizer.register_step_pre_hook(lambda opt, *_: self._split(opt, slow)),
            optimizer.register_step_post_hook(lambda opt, *_: self._merge(opt)),
        ]

    def _split(self, optimizer: torch.optim.Optimizer, slow: set[nn.Parameter]) -> None:
        """Two groups where there is one, for the time of a step, so schedules and checkpoints see what they know."""
        self._groups = []
        for group in optimizer.param_groups:
            fast = {**group, "params": [p for p in group["params"] if p not in slow]}
            lower = {**group, "params": [p for p in group["params"] if p in slow], "lr": group["lr"] * self.ratio}
            self._groups.append((group, [g for g in (fast, lower) if g["params"]]))
        optimizer.param_groups = [g for _, parts in self._groups for g in parts]

    def _merge(self, optimizer: torch.optim.Optimizer) -> None:
        for group, parts in self._groups:
            group.update({k: v for k, v in parts[0].items() if k not in ("params", "lr")})
        optimizer.param_groups = [group for group, _ in self._groups]
        self._groups = []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the optimizer as it was, so that a checkpoint of the crash can be resumed."""
        if self._groups:
            self._merge(trainer.optimizers[0])
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _training_step(self, module: Any, batch: Any) -> Tensor:
        chosen, rejected = module.pair_logratios(batch)
        with adapter_active(module.policy, SLOW):
            slow = module.pair_logratios(batch)
        fast_loss, slow_loss = self._losses((chosen, rejected), slow, self.alpha)
        weight = batch.get("weight") if isinstance(batch, Mapping) else None
        total = fast_loss + slow_loss
        loss = (total if weight is None else total * weight).mean()
        with torch.no_grad():
            base = self._losses((chosen, rejected), slow, 0.0)
            self._pending.append(torch.stack([loss, *(b.mean() for b in base)]).float())
            self._log(module, loss, (chosen, rejected), slow, (fast_loss, slow_loss))
        return loss

    def _losses(self, fast: tuple[Tensor, Tensor], slow: tuple[Tensor, Tensor], alpha: float) -> tuple[Tensor, Tensor]:
        return fast_slow_loss(*fast, *slow, beta=self.beta, alpha=alpha, clamp=self.clamp)

    def _log(self, module: Any, loss: Tensor, fast: Any, slow: Any, losses: tuple[Tensor, Tensor]) -> None:
        chosen, rejected = (x.detach().float() for x in fast)
        gap = chosen - rejected
        values = {
            "train/accuracy": ((gap > 0).float() + 0.5 * (gap == 0).float()).mean(),
            "train/margin": self.beta * gap.mean(),
            "train/chosen_logratio": chosen.mean(),
            "train/rejected_logratio": rejected.mean(),
            "fast_slow/fast_loss": losses[0].mean(),
            "fast_slow/slow_loss": losses[1].mean(),
            "fast_slow/lead": self.beta * (gap - (slow[0] - slow[1]).float()).mean(),
            "fast_slow/swaps": torch.tensor(float(self.swaps)),
        }
        module.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(gap))
        module.log_dict(values, batch_size=len(gap))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before a loss that is not finite reaches the weights, and add up base losses over the ranks."""
        if not self._pending:
            return
        seen = torch.stack(self._pending).mean(0)
        self._pending = []
        if not bool(torch.isfinite(seen[0])):
            raise ValueError(
                f"FastSlowLoRA: train/loss is {seen[0].item()} at optimizer step {trainer.global_step}; the weights "
                "were not updated. Lower the learning rate or alpha."
            )
        self._sums += trainer.strategy.reduce(seen[1:], reduce_op="mean")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide about the roles when K new optimizer steps have been made."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps:
            return
        self._step = step
        policy: Any = pl_module.policy
        if bool(self._sums[1] < self._sums[0]):
            self._swap(policy, trainer.optimizers[0])
        self._sums.zero_()

    def _swap(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The adapters change places, with what the optimizer remembers of them."""
        self.swaps += 1
        fast, slow = adapter_parameters(policy, self.adapter), adapter_parameters(policy, SLOW)
        state = optimizer.state
        with torch.no_grad():
            for key, a in fast.items():
                b = slow[key]
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)
                if a in state or b in state:
                    state[a], state[b] = state[b], state[a]

    def state_dict(self) -> dict[str, Any]:
        """Sums of base losses since the last decision; its step; number of swaps."""
        return {"sums": self._sums.tolist(), "step": self._step, "swaps": self.swaps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._sums = torch.tensor(state_dict["sums"])
        self._step, self.swaps = state_dict["step"], state_dict["swaps"]
