"""Text to 3D of named things, with a prior that is told the camera (docs/objects.md).

    python -m dreamjax.main --config=configs/objects.py \
        --config.prior.weights=runs/hundred_prior/prior.safetensors \
        --config.prompt="a fire truck" --workdir=runs/truck

No weights ship yet: `hundred_prior` trains them. As `configs/toybox.py`, but that the front is not
asked for, since the prior is told the camera by number.
"""

import dataclasses

from dreamjax.clock import Ramp
from dreamjax.distill.sds import Sds
from dreamjax.main import load_config
from dreamjax.priors.objects import Objects
from dreamjax.tasks.dream import Dream


def get_config() -> Dream:
    return dataclasses.replace(
        load_config("toybox"),
        steps=240,
        prior=Objects(),
        objective=Sds(guidance_scale=6.0, draws=2, t_high=Ramp(0.95, 0.6)),
        facing=None,
    )
