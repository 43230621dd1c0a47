"""The noisy-image classifier of the digits, for classifier guidance (three minutes).

    python -m dreamjax.main --config=classifier_digits --workdir=runs/digits_classifier

Its schedule must be that of configs/ddpm_digits.py.
"""

from dreamjax.tasks.train_classifier import TrainClassifier
from dreamjax.tasks.train_diffusion import Adm, NoiseSchedule
from dreamjax.training.optimizer import Adam


def get_config() -> TrainClassifier:
    return TrainClassifier(
        eval_examples=359,
        schedule=NoiseSchedule(shape="cosine"),
        net=Adm(32, channel_mults=(1, 2), res_blocks=1, attention_sizes=(4,), dropout=0.1),
        optimizer=Adam(
            final_learning_rate=1e-5, warmup=0.1, b2=0.99, clip_norm=1.0, weight_decay=0.05
        ),
    )
