"""ADM's 64 x 64 ImageNet model (arXiv 2105.05233 table 12): class-conditional, learned range.

    python -m dreamjax.main --config=adm_imagenet64 --workdir=runs/imagenet64 \
        --config.data.dir=DIR_OF_PREPARED_DATA_SETS

295.9 M parameters, batches of 2048, 540,000 steps; the paper reports FID 2.07 for it.
ImageNet itself must be prepared by hand (its licence asks for an account): `tfds build
downsampled_imagenet` makes a 64 x 64 copy without labels, `imagenet_resized/64x64` one with them.
It has not been run to the end here; a batch of 2048 wants a TPU slice or eight large GPUs.
"""

from dreamjax.data.tfds import Tfds
from dreamjax.tasks.train_diffusion import Adm, NoiseSchedule, TrainDiffusion
from dreamjax.training.optimizer import Adam


def get_config() -> TrainDiffusion:
    return TrainDiffusion(
        steps=540_000,
        batch_size=2048,
        variance="learned_range",
        loss="hybrid",
        ema_decay=0.9999,
        steps_per_dispatch=10,
        log_every=100,
        eval_every=10_000,
        eval_examples=1024,
        checkpoint_every=2500,
        data=Tfds("imagenet_resized/64x64", size=64, splits=("train", "validation"), flip=True),
        schedule=NoiseSchedule(shape="cosine"),
        net=Adm(
            channels=192,
            channel_mults=(1, 2, 3, 4),
            res_blocks=3,
            attention_sizes=(32, 16, 8),
            head_dim=64,
            split_qkv_first=True,
            resblock_updown=True,
            dropout=0.1,
            dtype="bfloat16",
        ),
        optimizer=Adam(3e-4),
        samples_per_class=4,
    )
