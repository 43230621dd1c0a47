"""Text to 3D on any machine, with the prior that ships with the package.

    python -m dreamjax.main --config=configs/toybox.py \
        --config.prompt="a snowman with a green hat" --workdir=runs/snowman

`scripts/dream "a snowman with a green hat"` wraps this.
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
    # Behind the prompt without its colours, for textureless views: what the prior calls them.
    config.textureless_words = "made of clay"
    config.seed = 0
    config.steps = 300
    config.batch_views = 4
    config.steps_per_dispatch = 1
    config.weights = ""  # a safetensors file; empty: the prior that ships with the package
    config.prior = group(dtype="float32", remat=False, fused=False)
    config.dream_fields = None
    config.guidance_scale = 4.0  # eps_uncond + s (eps_cond - eps_uncond)
    config.draws = 4  # noise draws a view; asking the small prior is cheap beside rendering
    config.t_range = (0.02, 0.98)  # fractions of T, at the first step ...
    config.t_range_end = (0.02, 0.6)  # ... and at the last, linear in between
    config.weighting = "sigma_squared"
    config.interpolate_views = False  # the text of the nearest view word
    config.perp_neg = 0.0
    config.clip_residual = 0.0
    config.latent_share = 0.0
    config.render_size = ((0.0, 32),)  # (from this share of the run, pixels)
    config.albedo_steps = 200  # without light at first: it pushes away what is haze still
    config.front_after = 0.5  # half-way the prior is asked which side is the front
    config.mlp_background = False  # random backdrops instead
    config.textured_backdrops = False
    config.field = group(
        width=64,
        blocks=2,
        min_deg=0,
        max_deg=5,
        blob_strength=6.0,
        blob_width=0.3,
        density_bias=-3.0,
        dtype="float32",
    )
    config.encoding = group(variance=(5e-2, 6e-3), ramp_steps=200)
    config.contrast = group(power=4.0, pivot=8.0, start=180, ramp_steps=100)  # against haze
    config.render = group(samples=32, normal_samples=4, radius=1.1, frustum=False, chunk=256)
    config.camera = group(
        distance=(2.8, 3.4),
        elevation=(-10.0, 80.0),
        area_uniform=0.5,
        focal=(1.2, 1.4),
        jitter_position=0.05,
        jitter_look_at=0.02,
        jitter_up=0.02,
    )
    config.light = group(distance=(2.5, 4.0), spread=0.7)
    config.shading = group(ambient=0.3, diffuse=0.7, shaded=0.75, textureless=0.15)
    config.loss = group(
        orientation=(1e-4, 1e-2),
        opacity=(0.0, 3e-3),
        entropy=(0.0, 0.04),  # against haze
        smoothness=(0.0, 4e-4),  # against dents, in lit views: they alone have normals
        ramp_steps=200,
        transmittance=0.0,
        target_opacity=(0.6, 0.12),
        target_steps=500,
    )
    config.optimizer = group(
        learning_rate=4e-3,
        final_learning_rate=3e-4,
        warmup_steps=20,
        b1=0.9,
        b2=0.99,
        eps=1e-10,
        clip_norm=0.0,
        weight_decay=0.0,
        shampoo=None,
    )
    config.export = group(
        views_size=96,
        preview_size=48,
        views_every=50,
        video_frames=48,
        video_size=96,
        mesh=group(resolution=128, max_faces=40_000, min_part=0.02),
    )
    config.checkpoint_every = 100
    config.log_every = 10
    return config
