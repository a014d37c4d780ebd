"""The invariants of the text module (design, section 4): step zero, accumulation, padding, references, frozen parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import DPO, IPO, LDDPO, ORPO, SFT, TDPO, SimPO
from pl_prefopt.policies import CausalLM
from pl_prefopt.references import AdapterCopy, AdapterOff, FrozenCopy, FrozenModel, NoReference
from tests.tiny import GPT2, QWEN2, collate, nudge, random_rows, tiny_lm

DROPOUT_GPT2 = {**GPT2, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}


def built(policy: Any = None, prefix: bool = False, **options: Any) -> TextPreferenceModule:
    module = TextPreferenceModule(policy or tiny_lm(), **options)
    module.configure_model()
    assert isinstance(module.family, CausalFamily)
    module.family.prefix_honoured = prefix
    module.train()
    return module


def mean_loss(module: TextPreferenceModule, batch: dict) -> torch.Tensor:
    return module.objective(module.score(batch)).mean()


def gradients(module: TextPreferenceModule) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("policy", "reference"),
    [
        (tiny_lm(), FrozenCopy()),
        (tiny_lm(lora=True), AdapterOff()),
        (tiny_lm(lora=True), AdapterCopy()),
        (tiny_lm(lora=True), FrozenCopy()),
        (tiny_lm(dtype="bfloat16"), FrozenCopy()),
        (tiny_lm(config=DROPOUT_GPT2), FrozenCopy()),
        (tiny_lm(gradient_checkpointing=True), FrozenCopy()),
        (tiny_lm(lora=True, gradient_checkpointing=True), AdapterOff()),
    ],
    ids=["full", "adapter-off", "adapter-copy", "lora-copy", "bf16", "dropout-model", "checkpointing", "lora-ckpt"],
)
@pytest.mark.parametrize("prefix", [False, True])
def test_at_step_zero_log_ratios_are_exactly_zero(policy: Any, reference: Any, prefix: bool) -> None:
    module = built(policy, prefix, reference=reference, shared_prefix=prefix or None)
    scores = module.score(collate(random_rows(4)))
    assert scores.logratios.abs().max() == 0
    losses = module.objective(scores)
    torch.testing.assert_close(losses, torch.full((4,), math.log(2)), rtol=0, atol=1e-7)
    assert module.row_metrics(scores, losses)["accuracy"].tolist() == [0.5] * 4
    losses.mean().backward()
    assert any(g.abs().sum() > 0 for g in gradients(module).values())


def test_weights_changed_in_memory_are_what_the_reference_copies() -> None:
    def changed() -> nn.Module:
        network = tiny_lm()()
        nudge(network)
        return network

    assert built(changed).score(collate(random_rows(3))).logratios.abs().max() == 0


@pytest.mark.parametrize("objective", [DPO(), IPO(average="mean"), LDDPO(), TDPO(), SimPO(), ORPO(), SFT()])
def test_one_batch_of_eight_equals_eight_of_one(objective: Any) -> None:
    rows = random_rows(8)
    whole, parts = built(objective=objective), built(objective=objective)
    for m in (whole, parts):
        nudge(m.policy)
    mean_loss(whole, collate(rows)).backward()
    losses = []
    for i, row in enumerate(rows):
        loss = mean_loss(parts, collate([row], start=i)) / 8
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses).sum(), mean_loss(whole, collate(rows)), rtol=1e-5, atol=1e-6)
    a, b = gradients(whole), gradients(parts)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-6)


def test_padding_and_order_do_not_change_scores() -> None:
    module = built()
    nudge(module.policy)
    rows = random_rows(5)
    plain = module.score(collate(rows)).logratios
    assert torch.equal(plain, module.score(collate(rows, left=True, extra=4)).logratios)
    turned = module.score(collate(rows[::-1])).logratios.flip(0)
    torch.testing.assert_close(plain, turned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", [DPO(), TDPO()])
def test_shared_prefix_rows_equal_separate_rows(objective: Any) -> None:
    rows = random_rows(4, prompt=12, completion=5)
    results = []
    for prefix in (False, True):
        module = built(prefix=prefix, shared_prefix=prefix or None, objective=objective)
        nudge(module.policy)
        loss = mean_loss(module, collate(rows))
        loss.backward()
        results.append((loss.detach(), gradients(module)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for name, grad in results[0][1].items():
        torch.testing.assert_close(grad, results[1][1][name], rtol=1e-3, atol=1e-5)


def test_compact_head_equals_full_logits_for_the_whole_loss() -> None:
    """The loss of a plain forward pass with all logits, by hand."""
    module = built()
    nudge(module.policy)
    rows = random_rows(3)
    assert module.reference is not None
    with module.reference.use(module.policy) as reference:  # type: ignore[operator]
        networks = [module.policy, reference]
    z = []
    for row in rows:
        sums = []
        for completion in row["completion_ids"]:
            ids = torch.tensor([row["prompt_ids"] + completion])
            for network in networks:
                logp = network(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
                sums.append(logp[-len(completion) :].sum())
        z.append(sums[0] - sums[1] - (sums[2] - sums[3]))
    want = nn.functional.softplus(-0.1 * torch.stack(z)).mean()
    torch.testing.assert_close(mean_loss(module, collate(rows)), want, rtol=1e-5, atol=1e-6)


def test_frozen_parts_never_train_nor_move() -> None:
    module = built()
    before = [p.clone() for p in module.reference.parameters()]  # type: ignore[union-attr]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        module.train()
        mean_loss(module, collate(random_rows(4))).backward()
        optimizer.step()
    assert module.policy.training
    assert not any(m.training for m in module.reference.modules())  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(before, module.reference.parameters(), strict=True))  # type: ignore[union-attr]
    assert all(p.grad is None for p in module.reference.parameters())  # type: ignore[union-attr]


def test_dropout_is_off_unless_asked() -> None:
    batch = collate(random_rows(4))
    off = built(tiny_lm(config=DROPOUT_GPT2), reference=NoReference())
    assert torch.equal(off.score(batch).logratios, off.score(batch).logratios)
    on = built(tiny_lm(config=DROPOUT_GPT2, dropout=True), reference=NoReference())
    assert not torch.equal(on.score(batch).logratios, on.score(batch).logratios)


def test_reference_runs_without_dropout_even_where_the_policy_has_it() -> None:
    lora = {"r": 4, "target_modules": ["c_attn"], "lora_dropout": 0.5}
    module = built(CausalLM(config=DROPOUT_GPT2, dropout=True, lora=lora))
    batch = collate(random_rows(3))
    first, second = module.score(batch).ref_logps, module.score(batch).ref_logps
    assert torch.equal(first, second)  # type: ignore[arg-type]
    assert module.policy.training


def test_an_objective_without_rejected_skips_half_of_the_forward() -> None:
    module = built(objective=SFT())
    assert module.score(collate(random_rows(3))).logratios.shape == (3, 1)
    assert module.reference is None
    module.eval()
    assert module.score(collate(random_rows(3))).logratios.shape == (3, 2)


def test_moved_reference_changes_the_log_ratio() -> None:
    for policy, reference in ((tiny_lm(), FrozenCopy()), (tiny_lm(lora=True), AdapterCopy())):
        module = built(policy, reference=reference)
        nudge(module.policy)
        batch = collate(random_rows(3))
        assert module.score(batch).logratios.abs().max() > 0
        with torch.no_grad():
            for ref, own in module.reference.pairs(module.policy):  # type: ignore[union-attr, operator]
                ref.copy_(own)
        assert module.score(batch).logratios.abs().max() == 0


def test_a_fixed_kind_of_reference_says_how_to_move() -> None:
    module = built(tiny_lm(lora=True), reference=AdapterOff())
    with pytest.raises(ValueError, match="AdapterCopy"):
        module.reference.pairs(module.policy)  # type: ignore[union-attr, operator]


def test_another_model_can_be_the_reference() -> None:
    module = built(reference=FrozenModel(tiny_lm(seed=3)))
    scores = module.score(collate(random_rows(3)))
    assert scores.logratios.abs().max() > 0
    own = built(tiny_lm(seed=3), reference=NoReference()).score(collate(random_rows(3)))
    torch.testing.assert_close(scores.ref_logps, own.logps, rtol=0, atol=1e-5)


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="must score the 61 tokens of the policy, got 50"):
        built(reference=FrozenModel(tiny_lm(config={**QWEN2, "vocab_size": 50})))


def test_adapter_references_need_adapters() -> None:
    with pytest.raises(ValueError, match="needs a policy with peft adapters"):
        built(reference=AdapterOff())


def test_an_adapter_on_the_output_layer_is_refused() -> None:
    lora = {"r": 4, "target_modules": ["q_proj", "lm_head"]}
    module = built(CausalLM(config=QWEN2, lora=lora))
    with pytest.raises(ValueError, match="lm_head"):
        module.score(collate(random_rows(2)))
