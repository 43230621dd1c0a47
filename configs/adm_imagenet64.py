"""ADM's 64 x 64 ImageNet model (arXiv 2105.05233 table 12): class-conditional, learned range.

    python -m dreamjax.main --config=configs/adm_imagenet64.py --workdir=runs/imagenet64 \
        --config.data.dir=DIR_OF_PREPARED_DATA_SETS

295.9 M parameters, batches of 2048, 540,000 steps; the paper reports FID 2.07 for it.
ImageNet itself must be prepared by hand (its licence asks for an account): `tfds build
downsampled_imagenet` makes a 64 x 64 copy without labels, `imagenet_resized/64x64` one with them.
It has not been run to the end here; a batch of 2048 wants a TPU slice or eight large GPUs.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    return config_dict.ConfigDict(
        dict(
            task="train_diffusion",
            seed=0,
            steps=540000,
            batch_size=2048,
            prediction="eps",
            variance="learned_range",
            loss="hybrid",
            vlb_weight=0.001,
            min_snr_gamma=0.0,
            v_weighting=False,
            by_importance=False,
            class_dropout=0.0,
            ema_decay=0.9999,
            steps_per_dispatch=10,
            log_every=100,
            eval_every=10000,
            eval_examples=1024,
            checkpoint_every=2500,
            data=dict(
                name="imagenet_resized/64x64",
                dir="",
                size=64,
                splits=("train", "validation"),
                download=False,
                flip=True,
            ),
            schedule=dict(shape="cosine", steps=1000, zero_terminal_snr=False),
            net=dict(
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
            optimizer=dict(learning_rate=3e-4, warmup_steps=0, weight_decay=0.0),
            sampler=dict(sampler="ddim", steps="50"),
            samples_per_class=4,
        )
    )
