"""What the prior wants of a finished dream, at several guidance scales.

    .venv/bin/python scripts/show_guidance.py runs/a-yellow-house-with-a-red-roof

Draws one view of the field in albedo and, for each guidance scale (rows) and each t (columns), the
mean of x_0_hat over eight draws of eps: what score distillation pulls that view towards. Where the
rows differ, guidance shapes the object. Takes one to four minutes on two cores.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.diffusion.guidance import classifier_free
from dreamjax.diffusion.process import q_sample, x0_from_eps
from dreamjax.distill.prompts import embed_views
from dreamjax.distill.step import encoding_variance, field_fn
from dreamjax.errors import UserError
from dreamjax.export.sheet import grid, write_png
from dreamjax.scene.camera import all_names, middle_camera, name_index
from dreamjax.scene.render import render_image
from dreamjax.scene.shading import Shading
from dreamjax.tasks.dream import load_scene
from dreamjax.tasks.priors import load_prior

DRAWS = 8
GREY = jnp.full((1, 1, 3), 0.6)


def x_0_hats(prior, params, prompt: str, name: int, rgb, t: int, scales) -> list:
    """The mean of x_0_hat, as rgb [S, S, 3], for each guidance scale."""
    text, null = embed_views(prior, params, prompt)
    key_encode, key_eps = jax.random.split(jax.random.key(t))
    z_0 = jnp.repeat(prior.encode(params, rgb[None], key_encode), DRAWS, axis=0)
    z_t = q_sample(prior.schedule, z_0, jnp.full(DRAWS, t), jax.random.normal(key_eps, z_0.shape))
    told = jax.tree.map(
        lambda cond, uncond: jnp.repeat(jnp.stack([cond[name], uncond[0]]), DRAWS, axis=0),
        text,
        null,
    )
    twice = jnp.concatenate([z_t, z_t])
    eps = jax.jit(prior.predict_eps)(params, twice, jnp.full(2 * DRAWS, t), told)
    found = []
    for scale in scales:
        eps_hat = classifier_free(eps[:DRAWS], eps[DRAWS:], scale)
        x_0 = x0_from_eps(prior.schedule, z_t, jnp.full(DRAWS, t), eps_hat).mean(0, keepdims=True)
        found.append(np.clip(prior.decode(params, x_0)[0], 0.0, 1.0))
    return found


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the workdir of a finished dream")
    parser.add_argument("--azimuth", type=float, default=90.0, help="degrees, 0 is the front")
    parser.add_argument("--elevation", type=float, default=10.0, help="degrees")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.0, 10.0])
    parser.add_argument("--t", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8], help="of T")
    parser.add_argument("--out", default="guidance.png")
    given = parser.parse_args()
    if not all(0.0 <= share <= 1.0 for share in given.t):
        raise UserError(f"--t must be shares of T, 0 to 1; got {given.t}")

    c, scene, state = load_scene(given.run)
    prior, params = load_prior(c.weights, c.prior)
    camera = middle_camera(c.camera, given.azimuth, given.elevation)
    albedo = Shading(camera.position, jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.0))
    rgb = render_image(
        field_fn(state.params, scene, state.step, state.front), camera, prior.image_size,
        encoding_variance(scene, state.step), albedo, GREY, scene.render, with_normals=False,
    ).rgb  # fmt: skip
    name = int(name_index(prior.view_names, camera.azimuth, camera.elevation))
    called = all_names(prior.view_names)[name]
    columns = []
    for share in given.t:
        print(f"t = {share:g} T", file=sys.stderr, flush=True)
        t = round(share * (prior.schedule.num_steps - 1))
        columns.append(x_0_hats(prior, params, c.prompt, name, rgb, t, given.guidance))
    pictures, captions = [], []
    for row, scale in enumerate(given.guidance):
        pictures += [np.asarray(rgb), *(column[row] for column in columns)]
        captions += [called, *(f"s {scale:g}, {share:g} T" for share in given.t)]
    write_png(given.out, grid(np.stack(pictures), len(given.t) + 1, captions))
    print(f"wrote {given.out}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
