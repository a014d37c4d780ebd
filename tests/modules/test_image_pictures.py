"""Sampling, and what is exported: diffusers' own pipelines read it back to the same pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_prefopt.adapters import adapters_disabled
from pl_prefopt.datamodules import PromptDataModule
from pl_prefopt.diffusion.sampling import draw_images
from pl_prefopt.policies import Diffusion
from tests.pictures import module, tiny_diffusion
from tests.tiny import nudge

CAPTIONS = ["a red circle", "a green square"]
SIZE = (16, 16)


def pipeline_pictures(pipe: Any, **options: Any) -> torch.Tensor:
    """What diffusers' own loop makes, from a fixed seed."""
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        CAPTIONS, height=16, width=16, num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(3), **options,
    )  # fmt: skip
    return made.images.float()


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_exported_adapter_loads_in_diffusers(name: str, tmp_path: Path) -> None:
    policy = Diffusion(tiny=name, lora={"r": 2, "lora_alpha": 7})
    made = module(policy)
    nudge(made.policy)
    made.export(tmp_path)
    own = policy.pipeline(made.policy)
    expected = pipeline_pictures(own)
    with adapters_disabled(made.policy):
        assert not torch.allclose(expected, pipeline_pictures(own), atol=1e-3)
    fresh = policy.pipeline(Diffusion(tiny=name)())
    fresh.load_lora_weights(str(tmp_path))
    assert torch.equal(pipeline_pictures(fresh), expected)
    assert torch.equal(pipeline_pictures(policy.pipeline(Diffusion(tiny=name, adapter=str(tmp_path))())), expected)


def test_exported_weights_load_in_diffusers(tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    made = module(tiny_diffusion("sd", lora=False))
    nudge(made.policy)
    made.export(tmp_path)
    back = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet", use_safetensors=True)
    for key, value in made.policy.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "sd3", "flux", "pixel"])
def test_draws_belong_to_their_captions(name: str) -> None:
    made = module(tiny_diffusion(name))
    options = {"steps": 2, "seed": 4, "size": SIZE}
    before = torch.get_rng_state()
    both = made.sample(CAPTIONS, 2, **options)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())
    assert both.shape == (2, 2, 3, 16, 16)
    assert both.min() >= 0
    assert both.max() <= 1
    alone = made.sample(CAPTIONS[1:], 2, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(alone[0], both[1], rtol=1e-3, atol=1e-4)
    split = made.sample(CAPTIONS, 2, **options, batch_size=3)  # type: ignore[arg-type]
    torch.testing.assert_close(split, both, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(both[:, 0], both[:, 1], atol=1e-3)
    twice = made.sample([CAPTIONS[0]] * 2, 1, **options)  # type: ignore[arg-type]
    assert not torch.allclose(twice[0], twice[1], atol=1e-3)


@pytest.mark.parametrize(("name", "options"), [("sd", {}), ("sd3", {"max_sequence_length": 77})])
def test_the_loop_equals_that_of_diffusers(name: str, options: dict[str, Any]) -> None:
    """Same noise, same scheduler, same guidance: our loop gives the pipeline's latents."""
    policy = tiny_diffusion(name)
    made = module(policy)
    pipe = policy.pipeline(made.policy)
    pipe.scheduler = made.family.process.sampler(4, 64)[0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        CAPTIONS[:1], height=16, width=16, num_inference_steps=4, output_type="latent", latents=noise,
        guidance_scale=5.0, **options,
    ).images  # fmt: skip
    conditioner = policy.conditioner()
    with torch.no_grad():
        cond, empty = conditioner.encode_text(CAPTIONS[:1]), conditioner.unconditional(1)
        found = made.family.denoise(made.policy, cond, empty, noise, steps=4, guidance=5.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_oracle_network_is_sampled_back_to_its_picture() -> None:
    """A denoiser that knows the picture: every sampler must return it."""
    for name in ("sd", "sd-v", "sd3"):
        family = tiny_diffusion(name).family()
        x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))

        class Knows(torch.nn.Module):
            config = type("Config", (), {})()

        def predict(
            _: Any, x_t: torch.Tensor, t: torch.Tensor, __: Any, family: Any = family, x0: torch.Tensor = x0
        ) -> torch.Tensor:
            process = family.process
            zero = process.noised(torch.zeros_like(x0), torch.ones_like(x0), t)
            one = process.noised(torch.ones_like(x0), torch.zeros_like(x0), t)
            return process.target(x0, (x_t - one * x0) / zero, t)

        setattr(family, "predict", predict)  # noqa: B010
        made = family.generate(
            Knows(), {"prompt_embeds": x0}, {"prompt_embeds": x0}, (4, 8, 8), [torch.Generator()], steps=9, guidance=1.0
        )
        assert (made - x0).abs().max() < 0.05, name


def test_refuses_to_draw() -> None:
    made = module(tiny_diffusion("sd"))
    with pytest.raises(ValueError, match="list of at least one caption"):
        made.sample("a red circle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"multiples of 2 \(height, width\), got \(15, 16\)"):
        made.sample(CAPTIONS, size=(15, 16))
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        draw_images(made.family, made.policy, made.conditioner(), CAPTIONS, steps=0)


def test_the_command_line_renders_a_list_of_prompts(tmp_path: Path) -> None:
    """The adapter that an export wrote, a file of captions, and pictures beside their lines."""
    from PIL import Image

    from pl_prefopt.cli import main

    trained = module(tiny_diffusion("sd"))
    nudge(trained.policy)
    trained.export(tmp_path / "export")
    (tmp_path / "prompts.txt").write_text("a red circle\n\n a green square\na blue star\n")
    main(
        [
            "predict", "--model", "ImagePreferenceModule", "--model.policy", "Diffusion", "--model.policy.tiny", "sd",
            "--model.policy.adapter", str(tmp_path / "export"), "--model.timesteps", "LogitNormal",
            "--model.weighting", "MinSNR", "--model.weighting.gamma", "3.0", "--data", "PromptDataModule",
            "--data.prompts", str(tmp_path / "prompts.txt"), "--data.batch_size", "2", "--trainer.accelerator", "cpu",
            "--trainer.callbacks", "PredictionWriter", "--trainer.callbacks.path", str(tmp_path / "out"),
            "--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--return_predictions", "false",
            "--trainer.default_root_dir", str(tmp_path),
        ]
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions-0.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    expected = trained.sample(["a red circle", "a green square", "a blue star"], 1, seed=0)[:, 0]
    for line, picture in zip(lines, expected, strict=True):
        shown = torch.from_numpy(np.array(Image.open(tmp_path / "out" / line["picture"]))).permute(2, 0, 1)
        assert shown.shape == (3, 16, 16)
        assert (shown / 255 - picture).abs().max() < 0.02


@pytest.mark.parametrize(("prompts", "said"), [([" "], "holds no caption"), ("nowhere.txt", "no file 'nowhere.txt'")])
def test_refuses_prompts(prompts: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PromptDataModule(prompts)


def test_previews_and_predictions_take_steps_guidance_and_size() -> None:
    """Models distilled to few steps want one to four, and no guidance."""
    made = module(tiny_diffusion("sd"), sampling={"steps": 2, "guidance": 1.0, "size": [8, 16]})
    expected = made.sample(CAPTIONS[:1], 1, 3, steps=2, guidance=1.0, size=(8, 16))[:, 0]
    assert expected.shape == (1, 3, 8, 16)
    made.seed = 3
    images = made.predict_step({"caption": CAPTIONS[:1], "index": torch.tensor([0])}, 0)["picture"]
    torch.testing.assert_close(images, (expected * 255).round().to(torch.uint8))
    with pytest.raises(ValueError, match="sampling must be one of steps, guidance, size, batch_size, got 'step'"):
        module(tiny_diffusion("sd"), sampling={"step": 2})
