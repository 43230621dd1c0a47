"""`objects_prior` on a hundred of its 651 phrases: those that a newcomer asks for first.

    python -m dreamjax.main --config=configs/hundred_prior.py --workdir=runs/hundred_prior \
        --config.data.meshes=FOLDER_OR_NPZ

`scripts/train_prior --config=hundred_prior ...` is the same, faster on a CPU. A prior of few things
is sharp sooner than one of many. On two idle cores its mean pictures take 13 minutes (1,000 steps
of 256) and the 6,000 steps of 32 pictures 70.
"""

import dataclasses

from dreamjax.main import load_config
from dreamjax.tasks.train_objects import TrainObjects

PHRASES = tuple(
    "an apple|a banana|a pineapple|a strawberry|a watermelon|a lemon|a pear|a carrot|a pumpkin|"
    "an eggplant|a corn cob|a mushroom|a burger|a hot dog|a pizza|a donut|a cupcake|"
    "a birthday cake|an ice cream cone|a croissant|a taco|a lollipop|a gingerbread man|"
    "a jack o lantern|a cow|a horse|a fox|a wolf|a deer|an alpaca|a donkey|a shiba inu|a bunny|"
    "a frog|a rat|a spider|a crab|a bee|a snake|a dragon|a dolphin|a whale|a shark|a clownfish|"
    "a goldfish|a manta ray|a tyrannosaurus|a triceratops|a stegosaurus|a brontosaurus|"
    "a fire truck|a police car|a taxi|an ambulance|a race car|a tractor|a pickup truck|"
    "a garbage truck|a helicopter|a bicycle|a spaceship|a pirate ship|a viking ship|"
    "a sailing boat|a rowing boat|a tree|a pine tree|a snowy pine tree|a palm tree|a cactus|"
    "a potted plant|a brick house|a windmill|a castle|a church|a stone tower|a tent|a well|"
    "a wooden chair|an armchair|a wooden table|a bed|a bookshelf|a floor lamp|a red couch|"
    "a throne|a bathtub|a toilet|a treasure chest|a barrel|a sword|an axe|a hammer|"
    "a golden crown|a cannon|a guitar|a skull|a two legged robot|a fire hydrant|"
    "the planet earth".split("|")
)


def get_config() -> TrainObjects:
    task = load_config("objects_prior")
    mixing = dataclasses.replace(task.data.mixing, toybox=0.1)
    data = dataclasses.replace(task.data, phrases=PHRASES, mixing=mixing)
    optimizer = dataclasses.replace(task.optimizer, final_learning_rate=3e-5)
    return dataclasses.replace(
        task, steps=6000, mean_steps=1000, eval_every=1000, data=data, optimizer=optimizer
    )
