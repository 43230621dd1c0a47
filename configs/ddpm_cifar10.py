"""DDPM's CIFAR-10 model (arXiv 2006.11239 appendix B): eps, fixed variance, linear betas.

    python -m dreamjax.main --config=configs/ddpm_cifar10.py --workdir=runs/cifar10 \
        --config.data.download=true

35,746,307 parameters, unconditional, batches of 128, 800,000 steps; the paper took 10.6 hours on a
TPU v3-8 and reports FID 3.17 and at most 3.75 bits/dim. This config follows its settings and has
not been run to the end here; expect days on one GPU, and do not try it on a CPU.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    return config_dict.ConfigDict(
        dict(
            task="train_diffusion",
            seed=0,
            steps=800000,
            batch_size=128,
            prediction="eps",
            variance="fixed_large",
            loss="simple",
            vlb_weight=0.001,
            min_snr_gamma=0.0,
            v_weighting=False,
            by_importance=False,
            class_dropout=0.0,
            ema_decay=0.9999,
            steps_per_dispatch=10,
            log_every=100,
            eval_every=10000,
            eval_examples=1000,
            checkpoint_every=5000,
            data=dict(name="cifar10", dir="", size=0, download=False, flip=True),
            schedule=dict(shape="linear", steps=1000, zero_terminal_snr=False),
            net=dict(
                channels=128,
                channel_mults=(1, 2, 2, 2),
                res_blocks=2,
                attention_sizes=(16,),
                heads=1,
                scale_shift_norm=False,
                dropout=0.1,
                dtype="float32",
            ),
            optimizer=dict(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
            sampler=dict(sampler="ddim", steps="50"),
            samples_per_class=8,
        )
    )
