"""The judge of a hundred named things, which `hundred_evaluate` reads pictures with.

    python -m dreamjax.main --config=hundred_judge --workdir=runs/hundred_judge \
        --config.data.meshes=FOLDER_OR_NPZ

Draws its own pictures of the meshes and trains on them: twelve minutes on two cores, with another
training beside it.
"""

import dataclasses

from dreamjax.main import load_config
from dreamjax.tasks.train_judge import TrainJudge
from dreamjax.training.optimizer import Adam


def get_config() -> TrainJudge:
    phrases = load_config("hundred_prior").data.phrases
    return TrainJudge(
        steps=2500,
        data=dataclasses.replace(TrainJudge().data, phrases=phrases),
        optimizer=Adam(2e-3, final_learning_rate=2e-5, warmup=0.05, b2=0.99, clip_norm=1.0),
    )
