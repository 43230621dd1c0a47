"""The shipped prior: a 32x32 text-conditional UNet trained on the toybox.

    python -m dreamjax.main --config=toybox_prior --workdir=runs/toybox_prior

`scripts/train_toybox_prior` wraps this. It draws 262,144 pictures once (5 to 30 minutes),
then trains. On an accelerator, draw each batch inside the step instead:

    --config.data.on_device=True --config.unet.dtype=bfloat16 --config.batch_size=512 \
    --config.steps_per_dispatch=10 --config.warm_start=shipped --config.reading_steps=0
"""

from dreamjax.tasks.train_prior import Captioned, TrainPrior, UNetSize
from dreamjax.training.optimizer import Adam

CAPTIONS = (
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


def get_config() -> TrainPrior:
    return TrainPrior(
        steps=10_000,
        # On a CPU a step runs ten times slower inside XLA's loop, so it is one step a dispatch.
        batch_size=32,
        reading_steps=600,
        checkpoint_every=250,
        data=Captioned(counts=(262_144, 2048, 2048)),
        unet=UNetSize(down_blocks=(2, 1), middle_blocks=2, up_blocks=(2, 2), attention_levels=(2,)),
        optimizer=Adam(final_learning_rate=1e-5, warmup=0.02, b2=0.99, clip_norm=1.0),
        sample_captions=CAPTIONS,
    )
