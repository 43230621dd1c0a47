"""Tiny Zero123 pipelines of both published layouts, their parts saved by diffusers itself."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from .tiny_sd import randomise

# The published pipelines: the folder of the linear layer, the layer's name.
LAYOUTS = {
    "Zero1to3StableDiffusionPipeline": ("cc_projection", "projection"),
    "Zero123Pipeline": ("clip_camera_projection", "proj"),
}
WIDTH = 24  # of CLIP's feature and the UNet's token


class Projection(ModelMixin, ConfigMixin):
    """The linear layer from feature and pose to the token, under a published name."""

    config_name = "config.json"

    def __init__(self, layer: str, width: int = WIDTH):
        super().__init__()
        self.layer = layer
        self.add_module(layer, torch.nn.Linear(width + 4, width))

    def forward(self, x):
        """Map [..., D + 4] to [..., D]."""
        return getattr(self, self.layer)(x)


class Tiny(NamedTuple):
    """The folder, and the modules in it."""

    folder: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoder: CLIPVisionModelWithProjection
    projection: Projection
    scheduler: DDIMScheduler


def make(folder: Path, kind: str) -> Tiny:
    """A model with random weights, saved in `folder` as safetensors."""
    torch.manual_seed(0)
    part, layer = LAYOUTS[kind]
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(32, 64),
        layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), layers_per_block=1, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
            image_size=28, patch_size=7, projection_dim=WIDTH,
        )
    )  # fmt: skip
    projection = Projection(layer)
    for module, spread in ((unet, 0.03), (vae, 0.03), (encoder, 0.1), (projection, 0.1)):
        randomise(module.eval(), spread)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip
    parts = {"unet": unet, "vae": vae, "image_encoder": encoder, part: projection}
    for name, module in parts.items():
        module.save_pretrained(folder / name, safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return Tiny(folder, unet, vae, encoder, projection, scheduler)
