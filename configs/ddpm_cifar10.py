"""DDPM's CIFAR-10 model (arXiv 2006.11239 appendix B): eps, fixed variance, linear betas.

    python -m dreamjax.main --config=ddpm_cifar10 --workdir=runs/cifar10 \
        --config.data.download=true

35,746,307 parameters, unconditional, batches of 128, 800,000 steps; the paper took 10.6 hours on a
TPU v3-8 and reports FID 3.17 and at most 3.75 bits/dim. This config follows its settings and has
not been run to the end here; expect days on one GPU, and do not try it on a CPU.
"""

from dreamjax.data.tfds import Tfds
from dreamjax.tasks.train_diffusion import Adm, TrainDiffusion
from dreamjax.training.optimizer import Adam


def get_config() -> TrainDiffusion:
    return TrainDiffusion(
        steps=800_000,
        batch_size=128,
        ema_decay=0.9999,
        steps_per_dispatch=10,
        log_every=100,
        eval_every=10_000,
        eval_examples=1000,
        checkpoint_every=5000,
        data=Tfds("cifar10", flip=True),
        net=Adm(
            channel_mults=(1, 2, 2, 2),
            attention_sizes=(16,),
            heads=1,
            scale_shift_norm=False,
            dropout=0.1,
        ),
        optimizer=Adam(2e-4, warmup=0.00625, clip_norm=1.0),
    )
