"""Text to 3D with MVDream (arXiv 2308.16512), which sees four sides at once, on one GPU.

    python -m dreamjax.main --config=configs/mvdream.py \
        --config.prior.weights=ashawkey/mvdream-sd2.1-diffusers \
        --config.prompt="a corgi wearing a beret, 3d asset" --workdir=runs/corgi

`prior.weights` is a folder in the layout of MVDream's diffusers conversion, or a repository id that
is fetched once. Elevations, guidance, range of t and negative prompt are those of its authors'
mvdream-sd21 for threestudio; their sampler adds ", 3d asset" to prompts. Not the same: SDS with the
paper's w(t) instead of a loss in x_0 with rescaled guidance, four views throughout (eight at
first), an MLP as the field, distances in a range of their own. No GPU has run it.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.export import Glb, MeshSheet, Report, Turntable, Views
from dreamjax.export.surface import Surface
from dreamjax.priors.mvdream import MVDream
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Adam

MOST = (0.0, 0.8)  # 8,000 of 10,000 steps
NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and "
    "unclear, cropped, lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn "
    "face, deformed, dehydrated, bad proportions"
)


def get_config() -> Dream:
    return Dream(
        negative_prompt=NEGATIVE,
        steps=10_000,
        batch_views=4,
        steps_per_dispatch=10,
        prior=MVDream(dtype="bfloat16", remat=True),
        objective=Sds(50.0, t_low=Ramp(0.96, 0.02, MOST), t_high=Ramp(0.98, 0.5, MOST)),
        phases=(Phase(until=0.5, size=64, lit=False), Phase(size=128, lit=False)),
        field=Mlp(width=128, blocks=4, max_deg=8, dtype="bfloat16"),
        density=Density(bias=0.0, blob=Blob(strength=5.0, width=0.25)),
        renderer=Renderer(64, 16, radius=1.0, chunk=2048, variance=Ramp(5e-2, 1e-3, (0.0, 0.4))),
        # Four views a quarter turn apart, in which a ball of radius 1 nearly fills the picture.
        cameras=Cameras((2.2, 2.6), (0.0, 30.0), 0.5, (1.3, 1.4), 0.0, 0.0, 0.0, group=4),
        background=Learned(),
        penalties=(Opacity(Ramp(1.0, 1.0)),),
        optimizer=Adam(1e-3, 1e-5, warmup=0.05, b2=0.99, eps=1e-15),
        log_every=10,
        checkpoint_every=1000,
        views_every=500,
        preview_size=96,
        surface=Surface(192, 60_000),
        exports=(Views(256), Glb(), MeshSheet(256), Turntable(120, 256), Report()),
    )
