"""Denoisers and their frozen side: tiny, from a folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pl_prefopt.diffusion.processes import Flow, VariancePreserving
from pl_prefopt.policies import Diffusion, PolicyBuilder
from pl_prefopt.utilities.configurable import from_config, to_config

CAPTIONS = ["a red circle", ""]
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "sd3", "flux", "pixel"])
def test_a_saved_pipeline_loads_through_the_same_code(name: str, tmp_path: Path) -> None:
    tiny = Diffusion(tiny=name, lora={"r": 2})
    whole = Diffusion(tiny=name)
    whole.pipeline(whole()).save_pretrained(tmp_path)
    loaded = Diffusion(pretrained=str(tmp_path), lora={"r": 2})
    a, b = tiny(), loaded()
    assert type(a) is type(b)
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert {k for k, p in a.named_parameters() if p.requires_grad} == {
        k for k, p in b.named_parameters() if p.requires_grad
    }
    assert type(tiny.family()) is type(loaded.family())
    one, two = tiny.conditioner(), loaded.conditioner()
    assert one.fingerprint() == two.fingerprint()
    for key, value in one.encode_text(CAPTIONS).items():
        assert torch.equal(value, two.encode_text(CAPTIONS)[key])
        assert value.shape[0] == 2
    for x, y in zip(one.encode(PIXELS), two.encode(PIXELS), strict=True):
        assert torch.equal(x, y)


def test_latents_are_scaled_as_the_pipeline_scales_them() -> None:
    for name, shift, scale in (("sd", 0.0, 0.18215), ("sd3", 0.0609, 1.5035)):
        conditioner = Diffusion(tiny=name).conditioner()
        posterior = conditioner.vae.encode(PIXELS).latent_dist
        mean, std = conditioner.encode(PIXELS)
        torch.testing.assert_close(mean, (posterior.mean - shift) * scale)
        torch.testing.assert_close(std, posterior.std * scale)
        decoded = conditioner.vae.decode(posterior.mean).sample
        torch.testing.assert_close(conditioner.decode(mean), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-4)


def test_pixels_are_their_own_latents_without_a_vae() -> None:
    conditioner = Diffusion(tiny="pixel").conditioner()
    mean, std = conditioner.encode(PIXELS)
    assert torch.equal(mean, PIXELS)
    assert not std.any()
    assert conditioner.factor == 1
    torch.testing.assert_close(conditioner.decode(mean), PIXELS / 2 + 0.5)


def test_only_adapters_train_and_the_rest_is_seeded() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (Diffusion(tiny="sd", lora={"r": 3, "lora_alpha": 6}, seed=s)() for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    trained = [k for k, p in one.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in k for k in trained)
    assert one.peft_config["default"].lora_alpha == 6  # type: ignore[index, union-attr]
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert all(p.requires_grad for p in Diffusion(tiny="sd")().parameters())


def test_dtype_and_prediction_type() -> None:
    policy = Diffusion(tiny="flux", dtype="bfloat16")
    assert {p.dtype for p in policy().parameters()} == {torch.bfloat16}
    conditioner = policy.conditioner()
    assert next(conditioner.vae.parameters()).dtype is torch.float32
    assert conditioner.encode_text(CAPTIONS)["prompt_embeds"].dtype is torch.bfloat16
    process = Diffusion(tiny="sd", prediction_type="v_prediction").family().process
    assert isinstance(process, VariancePreserving)
    assert process.prediction == "v_prediction"
    assert isinstance(Diffusion(tiny="flux").family().process, Flow)


def test_fingerprint_follows_the_frozen_weights() -> None:
    first, second = Diffusion(tiny="sd").conditioner(), Diffusion(tiny="sd", seed=1).conditioner()
    assert first.fingerprint() != second.fingerprint()
    again = Diffusion(tiny="sd", lora={"r": 2}).conditioner()
    assert first.fingerprint() == again.fingerprint()
    with torch.no_grad():
        next(again.vae.parameters()).flatten()[0] += 1e-3
    assert first.fingerprint() != again.fingerprint()


def test_sdxl_guides_against_zeros_and_sd_against_the_empty_caption() -> None:
    sd, xl = Diffusion(tiny="sd").conditioner(), Diffusion(tiny="sdxl").conditioner()
    assert torch.equal(sd.unconditional(3)["prompt_embeds"][2], sd.encode_text([""])["prompt_embeds"][0])
    assert not any(v.any() for v in xl.unconditional(2).values())


def test_a_vae_that_overflows_is_named() -> None:
    conditioner = Diffusion(tiny="sd").conditioner()
    with torch.no_grad():
        conditioner.vae.encoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"latents that are not finite in torch\.float32; run it in float32"):
        conditioner.encode(PIXELS)
    with pytest.raises(ValueError, match=r"multiples of 2, the factor of the VAE, got 16 x 15 pixels"):
        conditioner.encode(PIXELS[..., :15])
    with pytest.raises(ValueError, match="list of strings"):
        conditioner.encode_text("a red circle")


def test_plain_values_out_and_in() -> None:
    policy = Diffusion(tiny="sdxl", lora={"r": 4}, dtype="bfloat16", gradient_checkpointing=True, seed=3)
    assert from_config(json.loads(json.dumps(to_config(policy))), PolicyBuilder) == policy


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one of pretrained"),
    ({"tiny": "sd", "pretrained": "x"}, "exactly one of pretrained"),
    ({"tiny": "sd", "dtype": "int8"}, "dtype must be one of float32, bfloat16, float16"),
    ({"tiny": "sd", "lora": {"rank": 4}}, "lora option 'rank' is not an argument"),
    ({"tiny": "sd", "lora": {"r": 4}, "adapter": "x"}, "not both"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_refuses_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Diffusion(**options)


def test_refuses_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiny must be one of sd, sd-v, sdxl, sd3, flux"):
        Diffusion(tiny="sd2")()
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        Diffusion(pretrained=str(tmp_path))()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="holds a WanPipeline; supported are StableDiffusionPipeline"):
        Diffusion(pretrained=str(tmp_path))()
    with pytest.raises(ValueError, match="'velocity' is unknown; accepted: epsilon, v_prediction, sample"):
        Diffusion(tiny="sd", prediction_type="velocity").family()
    with pytest.raises(ValueError, match="flow matching model"):
        Diffusion(tiny="sd3", prediction_type="epsilon").family()
    with pytest.raises(ValueError, match="does not exist; give the folder or file"):
        Diffusion(tiny="sd", adapter=str(tmp_path / "no"))()
