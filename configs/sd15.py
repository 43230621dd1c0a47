"""Text to 3D with Stable Diffusion 1.5 on one GPU.

    python -m dreamjax.main --config=configs/sd15.py \
        --config.prior.weights=stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --config.prompt="a corgi wearing a beret, DSLR photo" --workdir=runs/corgi

`prior.weights` is a folder in the layout of diffusers, or a repository id that is fetched once
(2.1 GB in half precision).

Memory: about 13 GiB, 4.0 of parameters and 8.5 of buffers in XLA's plan of the compiled step (on a
CPU; no GPU has run it). Time, computed and not measured: a step is 4.7 TFLOP at 64 pixels and 5.6
at 128; 10,000 steps are 47 PFLOP, an hour at 13 TFLOP/s, what the 3 steps a second that users of
stable-dreamfusion report from an A100 come to. What is verified: docs/stable_diffusion.md.

A hash grid in place of the MLP: --config.field=hash_grid, with the values of docs/fields.md.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.sds import Sds
from dreamjax.distill.step import Phase
from dreamjax.export import Glb, MeshSheet, Report, Turntable, Views
from dreamjax.export.surface import Surface
from dreamjax.priors.stable_diffusion import StableDiffusion
from dreamjax.scene.backgrounds.learned import Learned
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Blob, Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Opacity, Orientation
from dreamjax.scene.render import Renderer
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Adam

EARLY = (0.0, 0.4)


def get_config() -> Dream:
    return Dream(
        steps=10_000,
        batch_views=1,
        steps_per_dispatch=10,
        prior=StableDiffusion(dtype="bfloat16", remat=True, interpolate_views=True),
        objective=Sds(guidance_scale=100.0, t_high=Ramp(0.98, 0.5)),
        phases=(
            Phase(until=0.1, size=64, lit=False, cheap=True),  # without the autoencoder
            Phase(until=0.7, size=64),
            Phase(size=128),
        ),
        field=Mlp(width=128, blocks=4, max_deg=8, dtype="bfloat16"),
        density=Density(bias=0.0, blob=Blob(strength=5.0, width=0.25)),
        # All rays at once would take 5 GiB at 64 pixels, 20 at 128.
        renderer=Renderer(64, 16, radius=1.0, chunk=2048, variance=Ramp(5e-2, 1e-3, EARLY)),
        cameras=Cameras((2.5, 3.1), focal=(1.1, 1.4), jitter_look_at=0.05),
        light=Light(distance=(2.0, 3.5), spread=1.0, ambient=0.1, diffuse=0.9),
        background=Learned(),
        penalties=(Orientation(Ramp(0.4, 40.0, EARLY)), Opacity(Ramp(4.0, 20.0, EARLY))),
        optimizer=Adam(1e-3, 1e-5, warmup=0.05, b2=0.99, eps=1e-15),
        log_every=10,
        checkpoint_every=1000,
        views_every=500,
        preview_size=96,
        surface=Surface(192, 60_000),
        exports=(Views(256), Glb(), MeshSheet(256), Turntable(120, 256), Report()),
    )
