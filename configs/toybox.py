"""Text to 3D on any machine, with the prior that ships with the package.

    python -m dreamjax.main --config=configs/toybox.py \
        --config.prompt="a red mushroom with a white stem" --workdir=runs/mushroom

`scripts/dream "a red mushroom with a white stem"` wraps this.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "dream"
    config.prompt = ""
    config.negative_prompt = ""
    config.seed = 0
    config.steps = 400
    config.batch_views = 4
    config.prior = "toybox"
    config.weights = ""
    config.guidance_scale = 20.0
    config.t_range = (0.02, 0.98)
    config.t_range_end = (0.02, 0.6)
    config.render_size = ((0.0, 32),)
    config.albedo_steps = 100
    config.field = config_dict.ConfigDict(dict(width=64, blocks=2, max_deg=6))
    config.encoding = config_dict.ConfigDict(dict(variance=(5e-2, 2e-3), ramp_steps=300))
    config.render = config_dict.ConfigDict(dict(samples=32, normal_samples=4, chunk=1024))
    config.camera = config_dict.ConfigDict(dict(distance=(2.8, 3.4), focal=(1.2, 1.4)))
    config.light = config_dict.ConfigDict(dict(distance=(2.5, 4.0), spread=0.7))
    config.shading = config_dict.ConfigDict(
        dict(ambient=0.3, diffuse=0.7, shaded=0.75, textureless=0.2)
    )
    config.loss = config_dict.ConfigDict(
        dict(orientation=(1e-3, 1e-1), opacity=(1e-3, 1e-1), ramp_steps=300)
    )
    config.optimizer = config_dict.ConfigDict(
        dict(learning_rate=4e-3, final_learning_rate=5e-4, warmup_steps=20, b2=0.99, eps=1e-10)
    )
    config.export = config_dict.ConfigDict(
        dict(views_size=96, views_every=50, video_frames=60, video_size=128)
    )
    config.checkpoint_every = 100
    config.log_every = 10
    return config
