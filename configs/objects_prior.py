"""A prior of named things, told the camera: trained on pictures of your own folder of meshes.

    python -m dreamjax.main --config=configs/objects_prior.py --workdir=runs/objects_prior \
        --config.data.meshes=FOLDER

FOLDER holds GLB or OBJ files, named as what they show. Pictures are drawn once (1,319 objects from
64 sides in four minutes on two cores) and kept in ~/.cache/dreamjax. On two free cores text and
mean pictures see 340 of them a second at first (4,000 steps of 256: 50 minutes), then all sees 46 a
second: the 1.28 million of this config take about eight hours. It goes on where it was stopped.
`scripts/train_prior --config=objects_prior ...` is the same, faster on a CPU.
"""

from dreamjax.tasks.train_objects import TrainObjects
from dreamjax.tasks.train_prior import UNetSize
from dreamjax.training.optimizer import Adam

CAPTIONS = (
    "a fire truck",
    "a pineapple",
    "a cow",
    "a viking ship",
    "a snowy pine tree",
    "a photo of a frog",
    "a blue fire truck",
    "a purple cow",
    "a red mushroom with a white stem",
    "a snowman with a green hat",
)


def get_config() -> TrainObjects:
    return TrainObjects(
        steps=40_000,
        batch_size=32,
        checkpoint_every=500,
        eval_every=2000,
        # Of the prior that ships, whose UNet and words it begins with.
        unet=UNetSize(down_blocks=(2, 1), middle_blocks=2, up_blocks=(2, 2), attention_levels=(2,)),
        from_toybox=True,
        optimizer=Adam(warmup=0.005, b2=0.99, clip_norm=1.0),
        sample_captions=CAPTIONS,
    )
