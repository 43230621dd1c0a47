"""What a Stable Diffusion's configs say, and folders of other models."""

import json

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors import stable_diffusion
from dreamjax.priors.base import Prompt
from dreamjax.priors.clip import Clip
from dreamjax.priors.stable_diffusion import StableDiffusion

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
FILES = {
    INDEX: {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 96,
        "cross_attention_dim": 512,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {"num_hidden_layers": 23},
    SCHEDULER: {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
    },
}


def write(folder, **changes):
    for name, content in (FILES | changes).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_everything_is_read_from_the_folder(tmp_path):
    write(tmp_path)
    prior = StableDiffusion(weights=str(tmp_path), dtype="bfloat16", remat=True, fused=True)
    net = prior.net
    assert (prior.image_size, prior.shape) == (768, (96, 96, 4))
    assert prior.parameterisation == net.parameterisation and net.prediction == "v"
    assert net.text.num_hidden_layers == 23
    assert net.unet.dtype == net.vae.dtype == "bfloat16" and net.text.dtype == "float32"
    assert net.unet.remat and net.vae.remat and net.unet.fused
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(prior.schedule.alpha_bar, np.cumprod(1 - betas), rtol=1e-6)
    changed = {**FILES[SCHEDULER], "rescale_betas_zero_snr": True}
    write(tmp_path, **{SCHEDULER: changed})
    assert stable_diffusion.describe(tmp_path, "float32", False, False).schedule.alpha_bar[-1] == 0
    del changed["prediction_type"]
    write(tmp_path, **{SCHEDULER: changed})
    assert stable_diffusion.describe(tmp_path, "float32", False, False).prediction == "eps"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (INDEX, {"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline, not"),
        (INDEX, {}, "is a model of no kind, not a StableDiffusionPipeline"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "_class_name 'UNet2DModel'"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type 't5'"),
        (SCHEDULER, {**FILES[SCHEDULER], "prediction_type": "sample"}, "type is 'sample'"),
        (SCHEDULER, {**FILES[SCHEDULER], "beta_schedule": "cosine"}, "beta_schedule is 'cosine'"),
        (SCHEDULER, {"beta_schedule": "linear"}, "config.json lacks 'num_train_timesteps'"),
    ],
)
def test_another_models_folder(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says):
        StableDiffusion(weights=write(tmp_path, **{name: content})).load()


def test_a_clip_is_no_stable_diffusion_and_the_other_way_round(tmp_path):
    with pytest.raises(UserError, match="cannot read .*config.json: .*No such file"):
        Clip(weights=write(tmp_path)).load()
    (tmp_path / INDEX).unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="cannot read .*model_index.json: .*No such file"):
        StableDiffusion(weights=str(tmp_path)).load()


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="dtype is 'zzz': expected one of 'float32', 'bfloat16'"):
        StableDiffusion(dtype="zzz")
    with pytest.raises(UserError, match="fused attention is for half precision"):
        StableDiffusion(fused=True)
    assert StableDiffusion(fused=True, dtype="float16").fused


def test_missing_weights_are_told_as_that():
    says = (
        "StableDiffusion needs weights: name a folder or a repository id, as "
        "--config.prior.weights=stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    for ask in (StableDiffusion().load, lambda: StableDiffusion().schedule):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value) == says
    with pytest.raises(UserError, match="Clip needs weights: .*--config.prior.weights=openai/clip"):
        Clip().load()


@pytest.mark.parametrize("prior", [StableDiffusion(), Clip()])
@pytest.mark.parametrize("prompt", ["", "!!!", "🦊"])
def test_a_prompt_without_a_word(prior, prompt):
    """Told before anything of the model is asked for."""
    with pytest.raises(UserError, match="has no word in it"):
        prior.embed({}, Prompt(prompt))


def test_clip_has_nothing_to_guide_away_from():
    with pytest.raises(UserError, match="negative_prompt is set, but CLIP has no guidance"):
        Clip().embed({}, Prompt("a ball", "a cube"))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("~nouser/x", "home directory"),
        ("x" * 5000, r"\(5000 characters\)"),
        ("no such folder", "neither a folder nor a repository id"),
    ],
)
@pytest.mark.parametrize("cls", [StableDiffusion, Clip])
def test_a_folder_that_cannot_be(cls, path, says):
    with pytest.raises(UserError, match=says) as error:
        cls(weights=path).load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
