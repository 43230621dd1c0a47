"""Dream Fields (arXiv 2112.01455): CLIP alone, no diffusion model, at the paper's middle quality.

    python -m dreamjax.main --config=configs/dream_fields.py \
        --config.prior.weights=openai/clip-vit-base-patch16 \
        --config.prompt="a bouquet of flowers sitting in a clear glass vase" --workdir=runs/flowers

One GPU. Memory: about 8 GB, most of it for rendering (XLA's own count of the compiled step, on a
CPU); less with a smaller `renderer.chunk`. Time, computed and not measured: 10,000 steps at 10
TFLOP/s, half of an A100's in float32, are about two hours. The published code's other settings are
88 pixels with crops of 80, a quarter of the work, and 252 with crops of 224 for 20,000 steps.

CLIP's weights are fetched once; `prior.weights` takes a folder as well. Score the result by another
CLIP than this one (`configs/r_precision.py`): it was made to please it.

As in the published code: the cameras, 168 pixels and 192 samples a ray, frustum encoding up to
degree 8, eight random crops of 154 of 168 pixels, each before a textured background of its own, the
transmittance loss (weight 0.5, the paper's target opacity), Adam (eps 1e-5, 1e-4 after 1500 steps),
10,000 steps. What differs: backgrounds are drawn behind the rendering and cropped with it;
frequencies are axis-aligned, not random; residual blocks are 128 wide inside, not 256; density is
an exponential, not softplus, with the same value at the start; the scene is bounded by a sphere of
the cube's volume, and its centre of mass is not tracked; the rate warms up linearly from 0.
"""

from dreamjax.clock import Ramp
from dreamjax.distill.dream_fields import DreamFields
from dreamjax.distill.step import Phase
from dreamjax.export import Glb, MeshSheet, Report, Turntable, Views
from dreamjax.export.surface import Surface
from dreamjax.priors.clip import Clip
from dreamjax.scene.backgrounds.textures import Textures
from dreamjax.scene.camera import Cameras
from dreamjax.scene.density import Density
from dreamjax.scene.fields.mlp import Mlp
from dreamjax.scene.penalties import Transmittance
from dreamjax.scene.render import Renderer
from dreamjax.scene.shading import Light
from dreamjax.tasks.dream import Dream
from dreamjax.training.optimizer import Adam


def get_config() -> Dream:
    return Dream(
        steps=10_000,
        batch_views=1,
        steps_per_dispatch=10,
        prior=Clip(dtype="bfloat16"),
        objective=DreamFields(),
        phases=(Phase(size=168, lit=False),),
        field=Mlp(width=128, blocks=4, max_deg=8),
        density=Density(bias=-0.367, blob=None),  # log of softplus(0)
        # The variance is of no use in training, where Gaussians are the rays' cones: a pixel's, for
        # the mesh.
        renderer=Renderer(192, 16, 1.24, frustum=True, chunk=2048, variance=Ramp(2e-5, 2e-5)),
        cameras=Cameras((4.0, 4.0), (30.0, 30.0), 0.0, (5 / 3, 5 / 3), 0.0, 0.0, 0.0),
        light=Light(shaded=0.0),
        background=Textures(each=8),
        penalties=(Transmittance(Ramp(0.5, 0.5)),),
        optimizer=Adam(1e-4, warmup=0.15, eps=1e-5),
        log_every=10,
        checkpoint_every=1000,
        views_every=500,
        preview_size=64,
        surface=Surface(160),
        exports=(Views(192), Glb(), MeshSheet(192), Turntable(120, 256), Report()),
    )
