"""What a Stable Diffusion's configs say, and folders of other models."""

import json

import numpy as np
import pytest

from dreamjax.errors import UserError
from dreamjax.priors import clip, stable_diffusion

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
FILES = {
    INDEX: {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"_class_name": "UNet2DConditionModel", "sample_size": 96},
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
    prior = stable_diffusion.describe(tmp_path, "bfloat16", remat=True, fused=True)
    assert (prior.image_size, prior.shape, prior.prediction) == (768, (96, 96, 4), "v")
    assert prior.text.num_hidden_layers == 23
    assert prior.unet.dtype == prior.vae.dtype == "bfloat16" and prior.text.dtype == "float32"
    assert prior.unet.remat and prior.vae.remat and prior.unet.fused
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
        stable_diffusion.load(write(tmp_path, **{name: content}))


def test_a_clip_is_no_stable_diffusion_and_the_other_way_round(tmp_path):
    with pytest.raises(UserError, match="cannot read .*config.json: .*No such file"):
        clip.load(write(tmp_path))
    (tmp_path / INDEX).unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="cannot read .*model_index.json: .*No such file"):
        stable_diffusion.load(str(tmp_path))


def test_half_precision_by_a_name_that_there_is(tmp_path):
    with pytest.raises(UserError, match="dtype is 'float16': expected one of float32, bfloat16"):
        stable_diffusion.load(write(tmp_path), "float16")
