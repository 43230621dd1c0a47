"""The probe that reads kind, colours and view word from pictures of toybox objects.

    python -m dreamjax.main --config=configs/toybox_probe.py --workdir=runs/probe

Draws 32,768 pictures (about 2 minutes on two cores) and trains on them for a quarter of an hour.
The result, runs/probe/probe.safetensors, ships as dreamjax/evaluate/weights/probe.safetensors.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "train_probe"
    config.seed = 0
    config.pictures = 32768
    config.fresh = 6144
    config.steps = 4000
    config.batch_size = 64
    config.steps_per_dispatch = 1  # a loop around a training step is slow on a CPU
    config.ema_decay = 0.998
    config.log_every = 50
    config.checkpoint_every = 500
    config.soften = config_dict.ConfigDict(
        dict(blur=(0.3, 0.8), zoom=(0.88, 1.12), shift=1.5, gain=0.15, tint=0.06, noise=0.04)
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            learning_rate=2e-3,
            final_learning_rate=2e-5,
            warmup_steps=200,
            b2=0.99,
            clip_norm=1.0,
            weight_decay=0.01,
        )
    )
    return config
