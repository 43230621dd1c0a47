"""The shipped prior: a 32x32 text-conditional UNet trained on the toybox.

    python -m dreamjax.main --config=configs/toybox_prior.py --workdir=runs/toybox_prior

`scripts/train_toybox_prior` wraps this. It draws 262,144 pictures once (5 to 30 minutes),
then trains. On an accelerator, draw each batch inside the step instead:

    --config.data.on_device=True --config.unet.dtype=bfloat16 --config.batch_size=512 \
    --config.steps_per_dispatch=10 --config.warm_start=shipped --config.reading_steps=0
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "train_prior"
    config.seed = 0
    config.steps = 10000
    config.batch_size = 32
    config.caption_dropout = 0.1
    config.late_t = 1.0  # t is drawn with density (1 + late_t) u^late_t over u = t / T
    config.ema_decay = 0.999
    config.warm_start = ""
    config.reading_steps = 600
    config.reading_anchor = 0.0  # of the squared distance from the text as it was, meanwhile
    config.reading_weight = 0.01  # of the loss of reading, beside the pictures'
    # On a CPU a training step runs ten times slower inside XLA's loop; on accelerators take 10.
    config.steps_per_dispatch = 1
    config.log_every = 50
    config.eval_every = 500
    config.eval_examples = 512
    config.checkpoint_every = 250
    config.data = config_dict.ConfigDict(
        dict(
            size=32,
            dir="~/.cache/dreamjax",
            counts=(262144, 2048, 2048),
            on_device=False,
            emphasis=(),  # kinds to train on more often, as (("house", 4.0), ("car", 3.0))
            textureless=1.0,  # how many times as often to train on textureless pictures
        )
    )
    config.unet = config_dict.ConfigDict(
        dict(
            channels=64,
            channel_mults=(1, 2, 4),
            down_blocks=(2, 1),
            middle_blocks=2,
            up_blocks=(2, 2),
            attention_levels=(2,),
            dtype="float32",
        )
    )
    config.optimizer = config_dict.ConfigDict(
        dict(
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup_steps=200,
            b1=0.9,
            b2=0.99,
            clip_norm=1.0,
        )
    )
    config.sample_captions = (
        "a red mushroom with a white stem, front view",
        "a blue car with a white top, side view",
        "a yellow house with a red roof, front view",
        "a snowman with a green hat, front view",
        "an orange ball on a blue cube, side view",
        "a purple chair, side view",
        "a yellow duck with an orange beak, side view",
        "a white rocket with a red tip, side view",
        "a green tree with a brown trunk, front view",
        "a pink donut with brown icing, overhead view",
        "a red mug, side view",
        "a blue teapot with a white lid, side view",
        "a snowman with a green hat, back view",
        "a blue car with a white top, front view",
        "a purple chair, back view",
        "a yellow house with a red roof, overhead view",
    )
    return config
