"""ProlificDreamer's first stage (arXiv 2305.16213): variational score distillation, one GPU.

    python -m dreamjax.main --config=configs/prolificdreamer.py \
        --config.prior.weights=FOLDER_OR_REPOSITORY_OF_2.1_BASE \
        --config.prompt="a pineapple, DSLR photo" --workdir=runs/pineapple

As threestudio's config of that name, with its cameras, guidance, range of t and penalties. Not the
same: the LoRA is trained on the prior itself (threestudio's is on 2.1 with v beside 2.1-base), the
field is an MLP, and pictures end at 256 pixels instead of 512. A step asks the UNet four times, and
once more on the way back. No GPU has run it.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.step import Phase
from dreamjax.distill.vsd import Vsd
from dreamjax.export import Glb, MeshSheet, Report, Turntable, Views
from dreamjax.export.surface import Surface
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Entropy, Opacity
from dreamjax.scene.render import Renderer
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Adam

FIFTH = (0.2, 0.2)  # 5,000 of 25,000 steps
TWO_FIFTHS = (0.4, 0.4)


def get_config() -> Dream:
    return Dream(
        steps=25_000,
        batch_views=1,
        steps_per_dispatch=10,
        prior=StableDiffusion(dtype="bfloat16", remat=True, cheap_encoder=False),
        objective=Vsd(t_high=Ramp(0.98, 0.5, FIFTH)),
        objective_optimizer=Adam(1e-4, b2=0.99, eps=1e-8),
        phases=(Phase(until=0.2, size=64, lit=False), Phase(size=256, lit=False)),
        field=Mlp(width=128, blocks=4, max_deg=8, dtype="bfloat16"),
        density=Density(bias=0.0, blob=Blob(strength=5.0, width=0.25)),
        renderer=Renderer(64, 16, radius=1.0, chunk=2048, variance=Ramp(5e-2, 1e-3, (0.0, 0.4))),
        cameras=Cameras((1.0, 1.5), (-10.0, 45.0), 0.5, (0.71, 1.37), 0.0, 0.0, 0.0),
        background=Learned(),
        penalties=(Opacity(Ramp(10.0, 10.0)), Entropy(Ramp(0.0, 1000.0, TWO_FIFTHS))),
        optimizer=Adam(1e-3, 1e-4, warmup=0.02, b2=0.99, eps=1e-15),
        log_every=10,
        checkpoint_every=1000,
        views_every=500,
        preview_size=96,
        surface=Surface(192, 60_000),
        exports=(Views(256), Glb(), MeshSheet(256), Turntable(120, 256), Report()),
    )
