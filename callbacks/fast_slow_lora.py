"""Two adapters that chase each other, for preferences that drift (OFS-DPO, 2406.05534)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pl_prefopt.adapters import adapter_active, adapter_names, adapter_parameters, add_adapter_copy, has_adapters
from pl_prefopt.callbacks.support.protocols import Batch, HasLogratios, require
from pl_prefopt.losses import fast_slow_loss
from pl_prefopt.utilities.checks import integer, not_negative, positive, within

SLOW = "slow"
"""Name of the adapter that is added."""
Logratios = tuple[Tensor, Tensor]
"""Chosen and rejected, (B,) each."""
ParamGroup = dict[str, Any]
"""A parameter group of a torch optimizer."""


class FastSlowLoRA(pl.Callback):
    """Train a fast and a slow adapter on one policy; the better one of the last K steps takes the fast role.

    With margins z of the log-ratios: fast = l(beta z_F) + alpha l(beta (z_F - sg[z_S])), slow = l(beta z_S) - alpha
    l(beta (sg[z_F] - z_S)); loss = fast + slow, one optimizer whose step has two parameter groups, lr and ratio * lr,
    and one joint clip of gradients. Every K optimizer steps the adapter with the lower mean base loss l(beta z) takes
    the fast role (ties: no change): values and optimizer state are swapped, so the policy's own adapter is the fast
    one at all times, in validation and in exports. alpha, ratio and K are our assumptions, the paper gives none.

    It goes beyond hooks: `setup` adds the adapter "slow" as a copy before the optimizer is created, and replaces the
    module's `training_step`, so the module's own loss is not used; `teardown` restores it. Learning-rate schedules act
    on both adapters. Checkpoints hold both: load them with this callback, or use what AdapterExport writes. Costs two
    passes of policy and reference per step.

    Args:
        beta: inverse temperature, > 0.
        alpha: weight of the chasing terms, >= 0; 0 is two independent runs.
        ratio: learning rate of the slow adapter over that of the fast one, in (0, 1].
        every_n_steps: K, optimizer steps between role decisions, >= 1.
        clamp: bound of the logits, > 0; no gradient beyond it.
        adapter: name of the policy's own adapter.

    Raises:
        ValueError: settings out of range; in `setup`, a policy without adapters or with gradient checkpointing (whose
            recomputation would see the wrong adapter), manual optimization, sharding; at the start of the fit, not
            exactly one optimizer or one without the slow adapter; a loss that is not finite.
        TypeError: in `setup`, a module without `policy` or `pair_logratios`.
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
        positive("beta", beta)
        positive("clamp", clamp)
        not_negative("alpha", alpha)
        within("ratio", ratio, 0, 1, open_low=True)
        integer("every_n_steps", every_n_steps)
        if adapter == SLOW:
            raise ValueError(f"adapter must be the policy's own, got {SLOW!r}, the name of the added one")
        self.beta, self.alpha, self.ratio, self.clamp = beta, alpha, ratio, clamp
        self.every_n_steps, self.adapter = every_n_steps, adapter
        self.swaps = 0
        self._step = 0
        self._sums = torch.zeros(2)
        self._pending: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._split_groups: list[tuple[ParamGroup, list[ParamGroup]]] = []

    @property
    def state_key(self) -> str:
        """Two instances with different settings have different keys."""
        return self._generate_state_key(adapter=self.adapter, every_n_steps=self.every_n_steps, ratio=self.ratio)

    # ---- setup -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module, add the slow adapter, and replace the training step by that of both adapters."""
        pl_module.configure_model()
        policy = require(pl_module, self, HasLogratios).policy
        self._check(policy, pl_module)
        if SLOW not in adapter_names(policy):
            add_adapter_copy(policy, self.adapter, SLOW)
        for p in adapter_parameters(policy, SLOW).values():
            p.requires_grad_(True)
        if stage != "fit":
            return
        # An attribute of the instance hides the method of the class; `teardown` deletes it again. A fit that failed
        # before its teardown may have left one.
        pl_module.__dict__.pop("training_step", None)

        @functools.wraps(pl_module.training_step)
        def training_step(batch: Batch, *_: Any, **__: Any) -> Tensor:
            return self._training_step(pl_module, batch)

        pl_module.training_step = training_step  # type: ignore[method-assign]

    def _check(self, policy: nn.Module, pl_module: pl.LightningModule) -> None:
        """Refuse what two adapters on one policy do not work with."""
        names = sorted(adapter_names(policy)) if has_adapters(policy) else []
        if self.adapter not in names:
            raise ValueError(
                f"policy must have a peft adapter named {self.adapter!r}, got {names or 'no adapters'}. FastSlowLoRA "
                "trains adapters: set the policy's `lora`, or name its adapter"
            )
        if any(getattr(m, "gradient_checkpointing", False) for m in policy.modules()):
            raise ValueError(
                "gradient_checkpointing must be false with FastSlowLoRA, got true. The recomputation in backward would "
                "use the adapter that is active then"
            )
        if pl_module.device_mesh is not None:
            raise ValueError("FastSlowLoRA must run unsharded, got a device mesh. Use strategy ddp, or one device")
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__}.automatic_optimization must be true with FastSlowLoRA, got false"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the optimizer, and let its step use two parameter groups."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"FastSlowLoRA requires exactly one optimizer, got {len(trainer.optimizers)}")
        (optimizer,) = trainer.optimizers
        optimized = {p for group in optimizer.param_groups for p in group["params"]}
        slow = set(adapter_parameters(cast(HasLogratios, pl_module).policy, SLOW).values())
        if not slow <= optimized:
            raise ValueError(
                "optimizer must hold the parameters of the slow adapter, got one without them. Let "
                "configure_optimizers read the trainable parameters of `policy` when it is called, not before"
            )
        self._sums = self._sums.to(pl_module.device)
        self._handles = [
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._split(optimizer, slow)),
            optimizer.register_step_post_hook(lambda optimizer, *_: self._merge(optimizer)),
        ]

    def _split(self, optimizer: torch.optim.Optimizer, slow: set[nn.Parameter]) -> None:
        """Give the slow adapter its own parameter group, with lr times `ratio`, for the duration of a step.

        Permanent groups would not do. A scheduler was created for the original groups and would assign their learning
        rates to whatever groups it finds, and a checkpoint with more groups than `configure_optimizers` makes could not
        be loaded. So outside of a step both see one group for each original one.
        """
        self._split_groups = []
        for group in optimizer.param_groups:
            fast_group = {**group, "params": [p for p in group["params"] if p not in slow]}
            slow_group = {**group, "params": [p for p in group["params"] if p in slow], "lr": group["lr"] * self.ratio}
            self._split_groups.append((group, [part for part in (fast_group, slow_group) if part["params"]]))
        optimizer.param_groups = [part for _, parts in self._split_groups for part in parts]

    def _merge(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the original groups, with what the step may have changed in them besides parameters and lr."""
        for group, parts in self._split_groups:
            group.update({k: v for k, v in parts[0].items() if k not in ("params", "lr")})
        optimizer.param_groups = [group for group, _ in self._split_groups]
        self._split_groups = []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the optimizer, so that a checkpoint of the crash can be resumed."""
        if self._split_groups:
            self._merge(trainer.optimizers[0])
        self._remove_hooks()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the training step of the module."""
        pl_module.__dict__.pop("training_step", None)
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _training_step(self, pl_module: pl.LightningModule, batch: Batch) -> Tensor:
        """Mean of fast + slow loss; keeps the base losses of both for the next decision."""
        module = cast(HasLogratios, pl_module)
        fast = module.pair_logratios(batch)
        with adapter_active(module.policy, SLOW):
            slow = module.pair_logratios(batch)
        losses = self._losses(fast, slow, self.alpha)
        weight = batch.get("weight") if isinstance(batch, Mapping) else None
        total = losses[0] + losses[1]
        loss = (total if weight is None else total * weight).mean()
        with torch.no_grad():
            base = self._losses(fast, slow, 0.0)
            self._pending.append(torch.stack([loss, *(b.mean() for b in base)]).float())
            self._log(pl_module, loss, fast, slow, losses)
        return loss

    def _losses(self, fast: Logratios, slow: Logratios, alpha: float) -> tuple[Tensor, Tensor]:
        return fast_slow_loss(*fast, *slow, beta=self.beta, alpha=alpha, clamp=self.clamp)

    def _log(
        self, pl_module: pl.LightningModule, loss: Tensor, fast: Logratios, slow: Logratios, losses: Logratios
    ) -> None:
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
        pl_module.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(gap), sync_dist=True)
        pl_module.log_dict(values, batch_size=len(gap), sync_dist=True)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before a loss that is not finite reaches the weights; add the base losses of all ranks to the sums."""
        if not self._pending:
            return
        loss, *base = torch.stack(self._pending).mean(0)
        self._pending = []
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"train/loss must be finite, got {loss.item()} at optimizer step {trainer.global_step} of "
                "FastSlowLoRA; the weights were not updated. Lower the learning rate or alpha"
            )
        self._sums += trainer.strategy.reduce(torch.stack(base), reduce_op="mean")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Decide on the roles after K further optimizer steps."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps:
            return
        self._step = step
        fast_loss, slow_loss = self._sums
        if bool(slow_loss < fast_loss):
            self._swap(cast(HasLogratios, pl_module).policy, trainer.optimizers[0])
        self._sums.zero_()

    @torch.no_grad()
    def _swap(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Swap the values of the two adapters and their optimizer states.

        Values, not names: the optimizer, checkpoints, peft and the exports all know the policy's own adapter by its
        name, and what carries this name must be the fast one.
        """
        self.swaps += 1
        slow_parameters, state = adapter_parameters(policy, SLOW), optimizer.state
        for key, fast in adapter_parameters(policy, self.adapter).items():
            slow = slow_parameters[key]
            values = fast.clone()
            fast.copy_(slow)
            slow.copy_(values)
            if fast in state or slow in state:
                state[fast], state[slow] = state[slow], state[fast]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the base losses since the last decision, its step, and the number of swaps."""
        return {"sums": self._sums.tolist(), "step": self._step, "swaps": self.swaps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sums and counts."""
        self._sums = torch.tensor(state_dict["sums"])
        self._step, self.swaps = state_dict["step"], state_dict["swaps"]
