"""A reference is the policy at the start, or what the user asked for; never silently something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks import ReferenceSync
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.policies import CausalLM
from pl_prefopt.references import AdapterCopy, AdapterOff, AutoReference, CachedReference, FrozenCopy, FrozenModel
from tests.modules.test_text_errors import Data, trainer
from tests.tiny import LORA, QWEN2, collate, nudge, random_rows, tiny_lm


def built(policy: CausalLM, **options: Any) -> TextPreferenceModule:
    module = TextPreferenceModule(policy, **options)
    module.configure_model()
    return module.train()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("lora", "kind"),
    [
        (LORA, "AdapterOff"),
        (LORA | {"bias": "all"}, "FrozenCopy"),
        (LORA | {"bias": "lora_only"}, "FrozenCopy"),
        (LORA | {"init_lora_weights": False}, "AdapterCopy"),
        (LORA | {"init_lora_weights": "pissa"}, "AdapterCopy"),
        (LORA | {"modules_to_save": ["lm_head"]}, "AdapterOff"),
    ],
    ids=["plain", "bias-all", "bias-lora", "random", "pissa", "modules-to-save"],
)
def test_log_ratios_begin_at_zero_and_the_reference_stays(lora: dict[str, Any], kind: str) -> None:
    """Biases that train beside adapters moved the reference along; PiSSA and random ones began 5 to 12 nats away."""
    config = {**QWEN2, "attention_bias": True}
    module, batch = built(CausalLM(config=config, lora=lora)), collate(random_rows(4))
    assert module.reference is not None
    assert module.reference.kind == kind
    before = module.score(batch)
    assert torch.equal(before.logratios, torch.zeros(4, 2))
    nudge(module.policy, 0.3)
    after = module.score(batch)
    assert before.ref_logps is not None
    assert after.ref_logps is not None
    torch.testing.assert_close(after.ref_logps, before.ref_logps, atol=1e-6, rtol=1e-6)
    assert after.logratios.abs().max() > 0.01


@pytest.mark.parametrize("reference", [AdapterOff(), AdapterCopy()])
def test_biases_that_train_beside_adapters_are_refused_where_they_would_move_the_reference(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"adapters alone are trained, got .*bias.*Leave out lora.bias"):
        built(CausalLM(config={**QWEN2, "attention_bias": True}, lora=LORA | {"bias": "all"}), reference=reference)


def test_a_trained_adapter_is_its_own_reference_unless_the_base_is_asked_for(tmp_path: Path) -> None:
    base = tmp_path / "base"
    CausalLM(config=QWEN2)().save_pretrained(base)  # type: ignore[operator]
    first = CausalLM(pretrained=str(base), lora=LORA)()
    nudge(first, 0.3)
    first.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    policy, batch = CausalLM(pretrained=str(base), adapter=str(tmp_path / "adapter")), collate(random_rows(4))
    assert torch.equal(built(policy).score(batch).logratios, torch.zeros(4, 2))
    assert built(policy, reference=AdapterOff()).score(batch).logratios.abs().max() > 0.01


def fit(module: TextPreferenceModule, folder: Path) -> pl.Trainer:
    run = trainer(folder)
    run.fit(module, datamodule=Data())
    return run


def test_a_policy_that_was_changed_after_it_was_built_is_refused_at_the_first_batch(tmp_path: Path) -> None:
    module = built(tiny_lm())
    nudge(module.policy, 0.3)
    with pytest.raises(ValueError, match=r"must agree at the first step, got log-ratios of up to .* FrozenCopy"):
        fit(module, tmp_path)


def test_another_reference_may_differ(tmp_path: Path) -> None:
    fit(built(tiny_lm(), reference=FrozenModel(tiny_lm(seed=4))), tmp_path)


@pytest.mark.parametrize("reference", [AutoReference(), FrozenCopy()])
def test_a_cached_reference_does_not_move(reference: Any, tmp_path: Path) -> None:
    module = built(tiny_lm(), reference=CachedReference(str(tmp_path / "cache"), reference))
    with pytest.raises(ValueError, match=r"must be able to move, got CachedReference"):
        ReferenceSync(every_n_steps=1).setup(trainer(tmp_path), module, "fit")


def test_a_cache_depends_on_the_configuration(tmp_path: Path) -> None:
    """rope_theta changes every value and no weight."""
    cache = CachedReference(str(tmp_path / "cache"))
    fit(built(tiny_lm(), reference=cache), tmp_path)
    other = tiny_lm(config=QWEN2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    with pytest.raises(ValueError, match="made by other configuration"):
        fit(built(other, reference=cache), tmp_path)
