"""CLIP R-Precision of finished runs, a part of `task = evaluate` (`evaluate.r_precision`).

Each run is rendered as it is looked at, with a light at the camera before white, from eight
azimuths at elevation 30; textureless renderings show geometry alone.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from dreamjax.distill.step import StepConfig, encoding_variance, field_fn
from dreamjax.errors import UserError
from dreamjax.evaluate import r_precision
from dreamjax.evaluate.r_precision import AZIMUTHS, ELEVATION
from dreamjax.priors import clip as clips
from dreamjax.scene.camera import middle_camera
from dreamjax.scene.render import render_image
from dreamjax.tasks import dream
from dreamjax.tasks.many import prompts_of
from dreamjax.training.metrics import Progress


def score(
    dreams: Path, prompts: str, models: tuple[str, ...], size: int
) -> tuple[list[r_precision.Row], list[str]]:
    """A row for each CLIP of `models`, and lines about runs in `dreams` that have no score.

    `prompts` is the file of captions to retrieve from, `size` the side of renderings. Raises
    UserError for captions or weights that cannot be read, and where no run can be scored.
    """
    try:
        captions = r_precision.read_captions(Path(prompts).expanduser().read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read eval.prompts, {prompts!r}: {error}") from error
    networks = [(model, *clips.load(model)) for model in models]
    said, colored, bare, skipped = [], [], [], []
    runs = prompts_of(dreams)
    with Progress(len(runs), show=()) as bar:
        bar.note(f"rendering {len(runs)} runs from {len(AZIMUTHS)} azimuths, twice")
        for number, (place, prompt) in enumerate(runs.items()):
            try:
                r_precision.find_captions(captions, [prompt])
                c, scene, state = dream.load_scene(place)
            except UserError as error:
                skipped.append(f"{place.name}: {error}")
                continue
            for textureless, kept in ((0.0, colored), (1.0, bare)):
                seen = _draw(scene, state.params, c.steps, state.front, textureless, size)
                kept.append(np.asarray(seen))
            said.append(prompt)
            bar.update(number + 1)
    if not said:
        raise UserError(f"no run in {dreams} can be scored: {'; '.join(skipped) or 'it is empty'}")
    truth = r_precision.find_captions(captions, said)
    rows = []
    for model, clip, params in networks:
        texts = np.asarray(clip.embed(params, captions))
        see = jax.jit(partial(clip.image_features, params))
        scores = (
            r_precision.r_precision(r_precision.embed_renderings(see, np.stack(rgb)), texts, truth)
            for rgb in (colored, bare)
        )
        rows.append(r_precision.Row(model, *scores))
    return rows, skipped


@partial(jax.jit, static_argnames=("scene", "size"))
def _draw(
    scene: StepConfig, params: PyTree, step, front, textureless, size: int
) -> Float[np.ndarray, "v size size 3"]:
    field, white = field_fn(params, scene, step, front), jnp.ones((1, 1, 3))
    variance = encoding_variance(scene, step)

    def one(azimuth):
        camera = middle_camera(scene.camera, azimuth, ELEVATION)
        shading = dream.headlight(camera.position)._replace(textureless=textureless)
        return render_image(field, camera, size, variance, shading, white, scene.render).rgb

    return jax.lax.map(one, jnp.array(AZIMUTHS))
