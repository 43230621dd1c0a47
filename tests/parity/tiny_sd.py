"""Tiny Stable Diffusion pipelines of both generations, made and saved by diffusers itself."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# What tells 2.x from 1.x: heads, projections, the text encoder's activation and width, padding,
# and, in the larger model, what the UNet predicts.
FLAVOURS = {
    "1.x": dict(heads=2, linear=False, act="quick_gelu", pad="<|endoftext|>", predicts="epsilon"),
    "2.x": dict(heads=(2, 4), linear=True, act="gelu", pad="!", predicts="v_prediction"),
}
# A byte-level CLIP tokenizer's, whose only word of its own is "red".
CHARS = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256))]
CHARS += [chr(256 + n) for n in range(256 - len(CHARS))]
WORDS = [*CHARS, *(c + "</w>" for c in CHARS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
START, END = len(WORDS) - 2, len(WORDS) - 1


def save_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """The tokenizer of `WORDS`, its files in `folder`, which pads with the word `pad`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    settings = dict(
        tokenizer_class="CLIPTokenizer", model_max_length=77, pad_token=pad, unk_token=WORDS[END],
        bos_token=WORDS[START], eos_token=WORDS[END],
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def randomise(module: torch.nn.Module, spread: float) -> None:
    """Move every parameter, those that start at zero or one too, so that none can be left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))


def make(folder: Path, flavour: str) -> StableDiffusionPipeline:
    """A pipeline with random weights, saved in `folder` as safetensors."""
    torch.manual_seed(0)
    f = FLAVOURS[flavour]
    tokenizer = save_tokenizer(folder / "scratch", f["pad"])
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=3, hidden_act=f["act"], bos_token_id=START, eos_token_id=END,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=f["heads"], use_linear_projection=f["linear"],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), layers_per_block=1, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    for module, spread in ((text, 0.1), (unet, 0.03), (vae, 0.03)):
        randomise(module.eval(), spread)
    # As published: scaled-linear betas, steps shifted by one, latents not clipped.
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=f["predicts"],
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return pipeline
