"""A tiny Stable Diffusion and a tiny CLIP in the published layout, random, without PyTorch."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from dreamjax import weights
from dreamjax.nets.stable_diffusion.clip import CLIP, CLIPConfig
from dreamjax.priors import clip, published, stable_diffusion
from dreamjax.priors.clip import Clip

WORDS = [*map(chr, range(33, 127))]
WORDS = [*WORDS, *(c + "</w>" for c in WORDS), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
TEXT = dict(
    vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=8, hidden_act="gelu",
    eos_token_id=len(WORDS) - 1, model_type="clip_text_model",
)  # fmt: skip
CONFIGS = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": dict(
        _class_name="UNet2DConditionModel", sample_size=4, block_out_channels=[8],
        down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
        layers_per_block=1, cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
        use_linear_projection=True,
    ),
    "vae/config.json": dict(
        _class_name="AutoencoderKL", block_out_channels=[8], layers_per_block=1, sample_size=4,
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
        norm_num_groups=4, latent_channels=4, scaling_factor=0.18,
    ),
    "text_encoder/config.json": TEXT,
    "scheduler/scheduler_config.json": dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        num_train_timesteps=100, prediction_type="v_prediction", rescale_betas_zero_snr=True,
    ),
    "tokenizer/tokenizer_config.json": dict(
        tokenizer_class="CLIPTokenizer", model_max_length=77, pad_token="!", unk_token=WORDS[-1],
        bos_token=WORDS[-2], eos_token=WORDS[-1],
    ),
    "tokenizer/vocab.json": {word: number for number, word in enumerate(WORDS)},
    "clip/config.json": dict(
        model_type="clip", projection_dim=8, text_config=TEXT,
        vision_config=dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            image_size=8, patch_size=4, model_type="clip_vision_model",
        ),
    ),
    "clip/preprocessor_config.json": dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.2, 0.2, 0.2]),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Models:
    """Folders of models: their files' contents by name, and the text encoder's tensors."""

    folder: Path
    files: dict[str, bytes]
    text: dict[str, np.ndarray]

    def read(self, name: str) -> None:
        """Read what the file `name` is a part of."""
        part = name.split("/")[0]
        if part == "clip":
            prior = Clip(weights=str(self.folder / "clip"))
            prior.load()
            return
        nets = stable_diffusion.describe(self.folder, "float32", False, False)
        if part == "tokenizer":
            clip._tokenizer.cache_clear()
            clip.token_ids(self.folder / part, ["a red ball", ""], 8, len(WORDS))
        elif part != "scheduler":
            shapes = weights.shapes_of(nets)
            kind = {"text_encoder": "text"}.get(part, part)
            if kind in shapes:
                drop = ("text_projection.weight",)
                published.load(self.folder / part, shapes[kind], "text_model.", drop)


def _tensors(shapes, prefix: str = "") -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for ours, value in flatten_dict(shapes, sep=".").items():
        shape = published.published_shape(ours, value.shape)
        name = prefix + published.published_name(ours)
        found[name] = rng.normal(size=shape).astype(np.float16)
    return found


def write_tiny_models(folder: Path) -> Models:
    """Write both models' folders."""
    files = {name: json.dumps(config).encode() for name, config in CONFIGS.items()}
    files["tokenizer/merges.txt"] = b"#version: 0.2\nr e\nre d</w>\n"
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    shapes = weights.shapes_of(stable_diffusion.describe(folder, "float32", False, False))
    parts = {part: _tensors(shapes[part]) for part in ("unet", "vae")}
    parts["text_encoder"] = _tensors(shapes["text"], "text_model.")
    config = CLIPConfig.from_json(CONFIGS["clip/config.json"])
    images, ids = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 1), jnp.int32)
    both = jax.eval_shape(CLIP(config).init, jax.random.key(0), images, ids)["params"]
    parts["clip"] = _tensors(both)
    for part, tensors in parts.items():
        files[f"{part}/model.safetensors"] = save(tensors)
        (folder / part / "model.safetensors").write_bytes(files[f"{part}/model.safetensors"])
    halves = [f"model-{i}.safetensors" for i in (1, 2)]
    names = list(parts["vae"])
    where = {name: halves[i % 2] for i, name in enumerate(names)}
    for half in halves:
        content = save({name: parts["vae"][name] for name in names if where[name] == half})
        files[f"vae/{half}"] = content
        (folder / "vae" / half).write_bytes(content)
    files.pop("vae/model.safetensors")
    (folder / "vae" / "model.safetensors").unlink()
    files["vae/model.safetensors.index.json"] = json.dumps({"weight_map": where}).encode()
    (folder / "vae/model.safetensors.index.json").write_bytes(
        files["vae/model.safetensors.index.json"]
    )
    return Models(folder, files, parts["text_encoder"])
