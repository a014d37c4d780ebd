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
    """What trains is float32; what is frozen may be half."""
    policy = Diffusion(tiny="flux", dtype="bfloat16")
    assert {p.dtype for p in policy().parameters()} == {torch.float32}
    for p in Diffusion(tiny="flux", dtype="bfloat16", lora={"r": 2})().parameters():
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16)
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


def test_fingerprint_follows_the_tokenizer_and_its_padding() -> None:
    """Another padding token moved SDXL's embeddings by 2.0 under the same key."""
    first, second = Diffusion(tiny="sdxl").conditioner(), Diffusion(tiny="sdxl").conditioner()
    assert first.fingerprint() == second.fingerprint()
    second.encode_text(["one caption", "another"])
    assert first.fingerprint() == second.fingerprint()
    second.pipe.tokenizer_2.pad_token = second.pipe.tokenizer_2.eos_token
    changed = first.pipe.tokenizer_2.pad_token != second.pipe.tokenizer_2.pad_token
    assert (first.fingerprint() != second.fingerprint()) == changed
    second.pipe.tokenizer_2.model_max_length -= 1
    assert first.fingerprint() != second.fingerprint()


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


def saved_pipeline(name: str, folder: Path) -> Path:
    policy = Diffusion(tiny=name)
    policy.pipeline(policy()).save_pretrained(folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "scheduler", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "EDMDPMSolverMultistepScheduler"]
)
def test_a_scheduler_of_another_process_is_refused(scheduler: str, tmp_path: Path) -> None:
    """An SDXL folder with an EDM or flow matching scheduler trained as DDPM; Playground v2.5 is such a folder."""
    folder = saved_pipeline("sdxl", tmp_path)
    edit(folder / "scheduler" / "scheduler_config.json", _class_name=scheduler)
    with pytest.raises(ValueError, match=f"scheduler must be one of DDPMScheduler, .*, got {scheduler}"):
        Diffusion(pretrained=str(folder)).family()


def test_statistics_of_a_vae_that_training_would_not_follow_are_refused(tmp_path: Path) -> None:
    folder = saved_pipeline("sdxl", tmp_path)
    edit(folder / "vae" / "config.json", latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    with pytest.raises(ValueError, match="got latents_mean and latents_std"):
        Diffusion(pretrained=str(folder)).conditioner()


def test_a_folder_cannot_name_a_module_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of model_index.json went to import_module, and a file of the working directory was run."""
    folder = saved_pipeline("sd", tmp_path / "model")
    (tmp_path / "stolen.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder / "model_index.json", unet=["stolen", "UNet"])
    with pytest.raises(ValueError, match="must be a class of diffusers or transformers, got UNet of stolen"):
        Diffusion(pretrained=str(folder))()


def test_a_full_fine_tune_is_read_by_diffusers_and_by_us(tmp_path: Path) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    policy = Diffusion(tiny="sd")
    network = policy()
    with torch.no_grad():
        network.conv_out.bias.add_(1.0)  # type: ignore[union-attr, operator]
    policy.export(network, tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    ours = Diffusion(pretrained=str(tmp_path))()
    for loaded in (pipe.unet, ours):
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())


def test_sd3_without_its_t5(tmp_path: Path) -> None:
    """The released folder may be loaded without the largest encoder; its embeddings are zeros then."""
    folder = saved_pipeline("sd3", tmp_path)
    edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    conditioner = Diffusion(pretrained=str(folder)).conditioner()
    whole = Diffusion(tiny="sd3").conditioner().encode_text(CAPTIONS)
    embeds = conditioner.encode_text(CAPTIONS)
    torch.testing.assert_close(embeds["pooled"], whole["pooled"])
    assert embeds["prompt_embeds"].shape[-1] == whole["prompt_embeds"].shape[-1]
    assert not embeds["prompt_embeds"][:, 77:].any()


@pytest.mark.parametrize("steps", [1, 4])
def test_flux_is_sampled_at_the_sigmas_of_its_pipeline(steps: int) -> None:
    import numpy as np
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

    policy = Diffusion(tiny="flux")
    scheduler = policy.source().scheduler()
    config = scheduler.config
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    options = {"mu": calculate_shift(16, *(config[n] for n in names))} if config.use_dynamic_shifting else {}
    expected, _ = retrieve_timesteps(scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), **options)
    sampler, _ = policy.family().sampler(steps, 16)
    torch.testing.assert_close(sampler.timesteps, expected)
    torch.testing.assert_close(sampler.sigmas, scheduler.sigmas)


def test_bfloat16_below_adapters_trains_them_as_float32_does() -> None:
    """300 steps at 1e-5 moved 1 % of adapters in bfloat16: their weights stay float32."""
    changed = []
    for dtype in ("float32", "bfloat16"):
        network = Diffusion(tiny="sd", lora={"r": 2}, dtype=dtype)()
        adapters = [p for p in network.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in adapters]
        optimizer = torch.optim.AdamW(adapters, lr=1e-5)
        kind = next(network.parameters()).dtype
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            x, text = (torch.randn(s, generator=generator).to(kind) for s in ((2, 4, 8, 8), (2, 77, 8)))
            network(
                x, timestep=torch.tensor([10, 500]), encoder_hidden_states=text
            ).sample.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = [(a != b).float().mean().item() for a, b in zip(before, adapters, strict=True)]
        changed.append(sum(moved) / len(moved))
    assert changed[1] == pytest.approx(changed[0], abs=0.05)
    assert changed[0] > 0.9
