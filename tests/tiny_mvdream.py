"""A tiny MVDream in the layout of its diffusers conversion, random, without PyTorch."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from dreamjax import weights
from dreamjax.priors import mvdream, published, stable_diffusion

from .tiny_models import write_tiny_models

# What the conversion writes; the full-size values are these.
UNET = {
    "_class_name": "MultiViewUNetModel",
    "_diffusers_version": "0.23.1",
    "attention_resolutions": [4, 2, 1],
    "camera_dim": 16,
    "channel_mult": [1, 2, 4, 4],
    "context_dim": 1024,
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "out_channels": 4,
    "transformer_depth": 1,
    "use_checkpoint": False,
}
TINY = {
    **UNET,
    "attention_resolutions": [1],
    "channel_mult": [1],
    "context_dim": 8,
    "image_size": 4,
    "model_channels": 64,  # two in each group of a norm, or no time and no camera would be heard
    "num_head_channels": 32,
    "num_res_blocks": 1,
}
SCHEDULER = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    num_train_timesteps=1000, prediction_type="epsilon",
)  # fmt: skip


def random_tensors(shapes, config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a UNet under its published names, every one of about its usual size."""
    rng, found = np.random.default_rng(seed), {}
    for ours, value in flatten_dict(shapes, sep=".").items():
        shape = published.published_shape(ours, value.shape)
        size = 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2
        name = published.published_name(mvdream.their_name(ours, config))
        found[name] = np.float32(size * rng.normal(size=shape) + ours.endswith(".scale"))
    return found


def write_tiny_mvdream(folder: Path) -> Path:
    """Write its folder and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_models(folder)
    for name, content in (
        ("model_index.json", {"_class_name": "MVDreamPipeline"}),
        ("unet/config.json", TINY),
        ("scheduler/scheduler_config.json", SCHEDULER),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "unet" / "model.safetensors").unlink()
    nets = stable_diffusion.describe(folder, "float32", False, False, mvdream.MVDreamNets)
    tensors = random_tensors(weights.shapes_of(nets)["unet"], nets.unet)
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder
