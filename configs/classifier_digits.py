"""The noisy-image classifier of the digits, for classifier guidance (three minutes).

    python -m dreamjax.main --config=configs/classifier_digits.py --workdir=runs/digits_classifier

Its schedule must be that of configs/ddpm_digits.py.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    return config_dict.ConfigDict(
        dict(
            task="train_classifier",
            seed=0,
            steps=1000,
            batch_size=64,
            ema_decay=0.998,
            steps_per_dispatch=1,
            log_every=50,
            eval_every=500,
            eval_examples=359,
            checkpoint_every=500,
            data=dict(name="digits", dir="", flip=False),
            schedule=dict(shape="cosine", steps=1000, zero_terminal_snr=False),
            net=dict(
                channels=32,
                channel_mults=(1, 2),
                res_blocks=1,
                attention_sizes=(4,),
                heads=4,
                dropout=0.1,
            ),
            optimizer=dict(
                learning_rate=1e-3,
                final_learning_rate=1e-5,
                warmup_steps=100,
                b1=0.9,
                b2=0.99,
                clip_norm=1.0,
                weight_decay=0.05,
            ),
        )
    )
