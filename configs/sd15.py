"""Text to 3D with Stable Diffusion 1.5 on one GPU.

    python -m dreamjax.main --config=configs/sd15.py \
        --config.weights=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --config.prompt="a corgi wearing a beret, DSLR photo" --workdir=runs/corgi

`weights` is a folder in the layout of diffusers or a repository id, which is fetched once (2.1 GB
in half precision). Without it the config asks the prior that ships with the package, which knows
the toybox's words only: that is for trying the command. Pictures instead of objects:

    python -m dreamjax.main --config=configs/sd_sample.py \
        --config.weights=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --config.prompts='("a corgi wearing a beret, DSLR photo",)' --workdir=runs/pictures

Memory: about 13 GiB, 4.0 of parameters and 8.5 of buffers in XLA's plan of the compiled step (on a
CPU; no GPU has run it). Time, computed and not measured: a step is 4.7 TFLOP at 64 pixels and 5.6
at 128, of which the UNet's guided pair and the autoencoder with its gradient are 4.3, and 1.8 in
the latent part; 10,000 steps are 47 PFLOP. That is an hour at 13 TFLOP/s, what the 3 steps a second
that users of stable-dreamfusion report from an A100 come to, and ten minutes at a quarter of its
peak. What is verified: docs/stable_diffusion.md.
"""

from ml_collections import config_dict


def group(**values) -> config_dict.ConfigDict:
    return config_dict.ConfigDict(values)


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "dream"
    config.prompt = ""
    config.prompts = ""  # a file with one prompt a line
    config.negative_prompt = ""
    config.textureless_words = ""  # behind the colourless prompt of textureless views
    config.seed = 0
    config.steps = 10_000
    config.batch_views = 1
    config.steps_per_dispatch = 10
    config.weights = ""
    config.prior = group(dtype="bfloat16", remat=True, fused=False)
    config.dream_fields = None
    config.guidance_scale = 100.0  # eps_uncond + s (eps_cond - eps_uncond)
    config.draws = 1
    config.t_range = (0.02, 0.98)  # fractions of T, at the first step ...
    config.t_range_end = (0.02, 0.5)  # ... and at the last, linear in between
    config.weighting = "sigma_squared"
    config.interpolate_views = True  # text between front, side and back, by azimuth
    config.perp_neg = 0.0  # 1: away from the front where it is not seen; twice the work
    config.clip_residual = 0.0
    config.latent_share = 0.1  # of the run without the VAE
    config.render_size = ((0.0, 64), (0.7, 128))
    config.albedo_steps = 1000
    config.front_after = 0.0  # 0.5: ask the prior half-way which side is the front
    config.mlp_background = True
    config.textured_backdrops = False
    config.field = group(
        width=128,
        blocks=4,
        min_deg=0,
        max_deg=8,
        blob_strength=5.0,
        blob_width=0.25,
        density_bias=0.0,
        dtype="bfloat16",
    )
    config.encoding = group(variance=(5e-2, 1e-3), ramp_steps=4000)
    config.contrast = None
    # All rays at once would take 5 GiB at 64 pixels, 20 at 128.
    config.render = group(samples=64, normal_samples=16, radius=1.0, frustum=False, chunk=2048)
    config.camera = group(
        distance=(2.5, 3.1),
        elevation=(-10.0, 80.0),
        area_uniform=0.5,
        focal=(1.1, 1.4),
        jitter_position=0.05,
        jitter_look_at=0.05,
        jitter_up=0.02,
    )
    config.light = group(distance=(2.0, 3.5), spread=1.0)
    config.shading = group(ambient=0.1, diffuse=0.9, shaded=0.75, textureless=0.5)
    config.loss = group(
        orientation=(1e-4, 1e-2),
        opacity=(1e-3, 5e-3),
        entropy=(0.0, 0.0),
        smoothness=(0.0, 0.0),
        ramp_steps=4000,
        transmittance=0.0,
        target_opacity=(0.6, 0.12),
        target_steps=500,
    )
    config.optimizer = group(
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        warmup_steps=500,
        b1=0.9,
        b2=0.99,
        eps=1e-15,
        clip_norm=0.0,
        weight_decay=0.0,
        shampoo=None,
    )
    config.export = group(
        views_size=256,
        preview_size=96,
        views_every=500,
        video_frames=120,
        video_size=256,
        mesh=group(resolution=192, max_faces=60_000, min_part=0.02),
    )
    config.checkpoint_every = 1000
    config.log_every = 10
    return config
