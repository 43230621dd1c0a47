"""A picture to 3D with Zero123-XL or Stable Zero123 on one GPU.

    python -m dreamjax.main --config=configs/zero123.py \
        --config.prior.weights=kxic/zero123-xl --config.image=corgi.png \
        --config.reference.elevation=10 --workdir=runs/corgi

`image` is a PNG with alpha of an object seen from its front, which fills most of the picture;
`reference.elevation` is how many degrees above the horizon it was taken from. For Stable Zero123
add --config.prior.stable=True. On a machine without such weights take the prior that ships, which
reads words for the sides that the picture does not show:

    --config.prior=toybox --config.prompt="a snowman with a green hat" --config.steps=300

Guidance, weights and t are those of threestudio's stable-zero123.yaml; all cameras have the
picture's distance and focal length, as there. Time and memory are not measured: docs/priors.md.
"""

import dataclasses

from dreamjax.clock import Ramp
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.main import load_config
from dreamjax.priors.zero123 import Zero123
from dreamjax.scene.backgrounds.white import White
from dreamjax.scene.camera import Cameras
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream

THIRD = (1 / 12, 1 / 3)  # the part of the run in which t goes down


def get_config() -> Dream:
    return dataclasses.replace(
        load_config("sd15"),
        steps=5000,
        batch_views=4,
        prior=Zero123(dtype="bfloat16", remat=True),
        objective=Sds(3.0, t_low=Ramp(0.7, 0.3, THIRD), t_high=Ramp(0.98, 0.8, THIRD)),
        phases=(Phase(until=0.1, size=64, lit=False), Phase(until=0.7, size=64), Phase(size=128)),
        cameras=Cameras(
            (3.1, 3.1), focal=(1.3, 1.3), jitter_position=0.0, jitter_look_at=0.0, jitter_up=0.0
        ),
        light=Light(shaded=0.0),  # the light in the picture is taken for its colours
        background=White(),
    )
