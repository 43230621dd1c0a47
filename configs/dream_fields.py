"""Dream Fields (arXiv 2112.01455): CLIP alone, no diffusion model, at the paper's middle quality.

    python -m dreamjax.main --config=configs/dream_fields.py \
        --config.weights=openai/clip-vit-base-patch16 \
        --config.prompt="a bouquet of flowers sitting in a clear glass vase" --workdir=runs/flowers

One GPU. Memory: about 8 GB, most of it for rendering (XLA's own count of the compiled step, on a
CPU); less with a smaller `render.chunk`. Time, computed and not measured: a step is 6.0 TFLOP of
rendering in float32 (28,224 rays of 192 samples, 0.28 MFLOP each, four times over with the gradient
and what it recomputes) and 0.6 of CLIP B/16 in bfloat16, so 10,000 steps at 10 TFLOP/s, half of an
A100's in float32, are about two hours. The published code's other settings are 88 pixels with crops
of 80, a quarter of the work, and 252 with crops of 224 for 20,000 steps.

CLIP's weights are fetched once; `weights` takes a folder as well. Score the result by another CLIP
than this one (`configs/r_precision.py`): it was made to please it.

As in the published code: the camera (any azimuth, elevation 30, distance 4, focal length 1.67
widths), 168 pixels and 192 samples a ray, frustum encoding up to degree 8, eight random crops of
154 of 168 pixels, each before a textured background of its own, the transmittance loss (weight 0.5,
with the paper's target opacity from 0.6 to 0.12 over 500 steps; the code has 0.5 to 0.1), Adam (eps
1e-5, 1e-4 after 1500 steps), 10,000 steps.
What differs: backgrounds are drawn behind the rendering and cropped with it; frequencies are
axis-aligned, not random; residual blocks are 128 wide inside, not 256; density is an exponential,
not softplus, with the same value at the start; the scene is bounded by a sphere of the cube's
volume, and its centre of mass is not tracked; the rate warms up linearly from 0, not exponentially
from 1e-5.
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
    config.steps = 10_000
    config.batch_views = 1
    config.steps_per_dispatch = 10
    config.weights = ""  # CLIP: a folder or a repository id
    config.prior = group(dtype="bfloat16", remat=False, fused=False)
    config.dream_fields = group(crops=8, crop=(154 / 168, 154 / 168))
    # Of score distillation alone; not used.
    config.guidance_scale = 1.0
    config.draws = 1
    config.t_range = (0.02, 0.98)
    config.t_range_end = None
    config.weighting = "sigma_squared"
    config.interpolate_views = False
    config.perp_neg = 0.0
    config.clip_residual = 0.0
    config.latent_share = 0.0
    config.render_size = ((0.0, 168),)
    config.albedo_steps = 1_000_000  # no light at all
    config.front_after = 0.0
    config.mlp_background = False
    config.textured_backdrops = True  # noise, checkerboards, Fourier textures, all blurred
    config.field = group(
        width=128,
        blocks=4,
        min_deg=0,
        max_deg=8,
        blob_strength=0.0,
        blob_width=0.2,
        density_bias=-0.367,  # log of softplus(0)
        dtype="float32",
    )
    # Of no use in training, where encoding is by frustum; a pixel's, for the mesh.
    config.encoding = group(variance=(2e-5, 2e-5), ramp_steps=1)
    config.contrast = None
    config.render = group(samples=192, normal_samples=16, radius=1.24, frustum=True, chunk=2048)
    config.camera = group(
        distance=(4.0, 4.0),
        elevation=(30.0, 30.0),
        area_uniform=0.0,
        focal=(5 / 3, 5 / 3),
        jitter_position=0.0,
        jitter_look_at=0.0,
        jitter_up=0.0,
    )
    config.light = group(distance=(2.5, 4.0), spread=0.7)
    config.shading = group(ambient=1.0, diffuse=0.0, shaded=0.0, textureless=0.0)
    config.loss = group(
        orientation=(0.0, 0.0),
        opacity=(0.0, 0.0),
        entropy=(0.0, 0.0),
        smoothness=(0.0, 0.0),
        ramp_steps=1,
        transmittance=0.5,
        target_opacity=(0.6, 0.12),
        target_steps=500,
    )
    config.optimizer = group(
        learning_rate=1e-4,
        final_learning_rate=None,
        warmup_steps=1500,
        b1=0.9,
        b2=0.999,
        eps=1e-5,
        clip_norm=0.0,
        weight_decay=0.0,
        shampoo=None,
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
