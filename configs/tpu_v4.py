"""DreamFusion's set-up (arXiv 2209.14988): one view a chip on a TPU v4-8.

    python -m dreamjax.main --config=configs/tpu_v4.py \
        --config.prompt="a red mushroom with a white stem" --workdir=runs/mushroom

Starts on any machine; without `weights` it asks the prior that ships with the package. Not the
paper's: the prior (Imagen is not public), and the warm-up's first rate, 3e-8 where it has 1e-9.
With Stable Diffusion: --config.weights=stable-diffusion-v1-5/stable-diffusion-v1-5, and any prompt.

Memory, of a chip's 32 GiB, by XLA's plan of the compiled step (on a CPU; no TPU has run it): about
12 GiB, nearly all for rendering; 25 with Stable Diffusion 1.5, 4.0 of them parameters. Time,
computed and not measured: a chip's share of a step is 0.7 TFLOP (5.0 with Stable Diffusion), so
15,000 steps are 10 PFLOP (75) on each: ten minutes (75) at 17 TFLOP/s, 6 % of a v4's peak. The
paper reports 1.5 hours with Imagen.
"""

from ml_collections import config_dict


def group(**values) -> config_dict.ConfigDict:
    return config_dict.ConfigDict(values)


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.task = "dream"
    config.prompt = ""
    config.prompts = ""  # a file with one prompt a line
    config.negative_prompt = ""
    config.textureless_words = ""  # behind the colourless prompt of textureless views
    config.seed = 0
    config.steps = 15_000
    config.batch_views = 4
    config.steps_per_dispatch = 10
    config.weights = ""
    config.prior = group(dtype="bfloat16", remat=True, fused=False)
    config.dream_fields = None
    config.guidance_scale = 101.0  # the paper's 100 in its (1 + w) form
    config.draws = 1
    config.t_range = (0.02, 0.98)
    config.t_range_end = None
    config.weighting = "sigma_squared"
    config.interpolate_views = False  # the text of the nearest view word
    config.perp_neg = 0.0
    config.clip_residual = 0.0
    config.latent_share = 0.0
    config.render_size = ((0.0, 64),)
    config.albedo_steps = 1000
    config.front_after = 0.0  # 0.5: ask the prior half-way which side is the front
    config.mlp_background = True
    config.textured_backdrops = False
    config.field = group(
        width=128,
        blocks=5,
        min_deg=0,
        max_deg=8,
        blob_strength=5.0,
        blob_width=0.2,
        density_bias=0.0,
        dtype="float32",
    )
    config.encoding = group(variance=(5e-2, 2e-3), ramp_steps=5000)
    config.contrast = None
    config.render = group(samples=128, normal_samples=16, radius=1.4, frustum=False, chunk=0)
    config.camera = group(
        distance=(1.0, 1.5),
        elevation=(-10.0, 90.0),
        area_uniform=0.5,
        focal=(0.7, 1.35),
        jitter_position=0.1,
        jitter_look_at=0.2,
        jitter_up=0.02,
    )
    config.light = group(distance=(0.8, 1.5), spread=1.0)
    config.shading = group(ambient=0.1, diffuse=0.9, shaded=0.75, textureless=0.5)
    config.loss = group(
        orientation=(1e-4, 1e-2),
        opacity=(1e-3, 5e-3),
        entropy=(0.0, 0.0),
        smoothness=(0.0, 0.0),
        ramp_steps=5000,
        transmittance=0.0,
        target_opacity=(0.6, 0.12),
        target_steps=500,
    )
    config.optimizer = group(
        learning_rate=1e-4,
        final_learning_rate=1e-6,
        warmup_steps=3000,
        b1=0.9,
        b2=0.9,
        eps=1e-6,
        clip_norm=0.0,
        weight_decay=0.0,
        shampoo=group(block_size=128, root=2),
    )
    config.export = group(
        views_size=192,
        preview_size=64,
        views_every=500,
        video_frames=120,
        video_size=256,
        mesh=group(resolution=160, max_faces=40_000, min_part=0.02),
    )
    config.checkpoint_every = 1000
    config.log_every = 10
    return config
