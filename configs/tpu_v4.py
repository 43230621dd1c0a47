"""DreamFusion's set-up (arXiv 2209.14988): one view a chip on a TPU v4-8.

    python -m dreamjax.main --config=configs/tpu_v4.py \
        --config.prompt="a red mushroom with a white stem" --workdir=runs/mushroom

It starts on any machine and asks the prior that ships. Not the paper's: the prior (Imagen is not
public), and the warm-up's first rate, 3e-8 where it has 1e-9. With Stable Diffusion add
--config.prior=stable_diffusion \
    --config.prior.weights=stable-diffusion-v1-5/stable-diffusion-v1-5, for any prompt.

Memory, of a chip's 32 GiB, by XLA's plan of the compiled step (on a CPU; no TPU has run it): about
12 GiB, nearly all for rendering; 25 with Stable Diffusion 1.5. Time, computed and not measured: ten
minutes (75 with Stable Diffusion) at 6 % of a v4's peak. The paper reports 1.5 hours with Imagen.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.step import Phase
from dreamjax.export import Glb, MeshSheet, Report, Turntable, Views
from dreamjax.priors.toybox import Toybox
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity, Orientation
from dreamjax.scene.render import Renderer
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Shampoo

THIRD = (0.0, 1 / 3)  # 5,000 steps


def get_config() -> Dream:
    return Dream(
        steps=15_000,
        batch_views=4,
        steps_per_dispatch=10,
        prior=Toybox(dtype="bfloat16", textureless_words=""),
        phases=(Phase(until=1 / 15, size=64, lit=False), Phase(size=64)),
        field=Mlp(width=128, blocks=5, max_deg=8),
        density=Density(bias=0.0, blob=Blob(strength=5.0, width=0.2)),
        renderer=Renderer(samples=128, normal_samples=16, radius=1.4, chunk=0),
        cameras=Cameras((1.0, 1.5), (-10.0, 90.0), 0.5, (0.7, 1.35), 0.1, 0.2, 0.02),
        light=Light(distance=(0.8, 1.5), spread=1.0, ambient=0.1, diffuse=0.9),
        background=Learned(),
        penalties=(Orientation(Ramp(0.4, 40.0, THIRD)), Opacity(Ramp(4.0, 20.0, THIRD))),
        optimizer=Shampoo(),
        log_every=10,
        checkpoint_every=1000,
        views_every=500,
        preview_size=64,
        exports=(Views(192), Glb(), MeshSheet(192), Turntable(120, 256), Report()),
    )
