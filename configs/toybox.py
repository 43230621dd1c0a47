"""Text to 3D on any machine, with the prior that ships with the package.

    python -m dreamjax.main --config=configs/toybox.py \
        --config.prompt="a snowman with a green hat" --workdir=runs/snowman

`dreamjax dream "a snowman with a green hat"` is the same. One CPU core takes five minutes.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.facing import Facing
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.scene.density import Blob, Contrast, Density
from dreamjax.scene.penalties import Entropy, Opacity, Orientation, Smoothness
from dreamjax.scene.render import Renderer
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Adam

EARLY = (0.0, 2 / 3)  # the part of the run that is in albedo; light pushes away what is haze still


def get_config() -> Dream:
    return Dream(
        steps=300,
        batch_views=4,
        objective=Sds(guidance_scale=4.0, draws=4, t_high=Ramp(0.98, 0.6)),
        phases=(Phase(until=2 / 3, size=32, lit=False), Phase(size=32)),
        facing=Facing(after=0.5),
        density=Density(
            bias=-3.0,
            blob=Blob(strength=6.0, width=0.3),
            contrast=Contrast(power=Ramp(1.0, 4.0, (0.6, 14 / 15)), pivot=8.0),  # against haze
        ),
        renderer=Renderer(samples=12, cells=32, radius=1.1, variance=Ramp(5e-2, 6e-3, EARLY)),
        light=Light(textureless=0.15),
        penalties=(
            Orientation(Ramp(0.08, 8.0, EARLY)),
            Opacity(Ramp(0.0, 3.0, EARLY)),
            Entropy(Ramp(0.0, 40.0, EARLY)),  # against haze
            Smoothness(Ramp(0.0, 0.4, EARLY)),  # against dents
        ),
        optimizer=Adam(4e-3, final_learning_rate=3e-4, warmup=1 / 15, b2=0.99, eps=1e-10),
        log_every=10,
        checkpoint_every=100,
    )
