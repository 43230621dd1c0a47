"""The probe that reads kind, colours and view word from pictures of toybox objects.

    python -m dreamjax.main --config=toybox_probe --workdir=runs/probe

Draws 32,768 pictures (about 2 minutes on two cores) and trains on them for a quarter of an hour.
The result, runs/probe/probe.safetensors, ships as dreamjax/evaluate/weights/probe.safetensors.
"""

from dreamjax.tasks.train_probe import TrainProbe
from dreamjax.training.optimizer import Adam


def get_config() -> TrainProbe:
    return TrainProbe(
        steps=4000,
        optimizer=Adam(
            2e-3,
            final_learning_rate=2e-5,
            warmup=0.05,
            b2=0.99,
            clip_norm=1.0,
            weight_decay=0.01,
        ),
    )
