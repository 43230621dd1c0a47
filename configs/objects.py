"""Text to 3D of a hundred named things, with a prior that is told the camera (docs/objects.md).

    python -m dreamjax.main --config=configs/objects.py \
        --config.prompt="a fire truck" --workdir=runs/truck

`dreamjax dream "a fire truck" --config=objects` is the same. As `configs/toybox.py`, but that the
front is not asked for, since the prior is told the camera by number; and the field is a grid.
"""

import dataclasses

from dreamjax.clock import Ramp
from dreamjax.distill.hifa import Hifa
from dreamjax.distill.weighting import Uniform
from dreamjax.main import load_config
from dreamjax.priors.objects import Objects
from dreamjax.scene.fields.hash_grid import HashGrid
from dreamjax.tasks.dream import Dream


def get_config() -> Dream:
    return dataclasses.replace(
        load_config("toybox"),
        steps=240,
        prior=Objects(),
        # In a grid what is thin stays where it is seen; in an MLP all goes at once.
        field=HashGrid(levels=6, finest=48, extent=1.15),
        # One falling t: first the mean of what the words mean, then one thing. w = 1, or the
        # penalties would outweigh the small t.
        objective=Hifa(
            guidance_scale=6.0,
            draws=2,
            t_low=Ramp(0.15, 0.15),
            t_high=Ramp(0.95, 0.95),
            weighting=Uniform(),
        ),
        facing=None,
    )
