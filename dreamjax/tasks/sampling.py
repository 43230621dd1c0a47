"""Pictures from a prior: DDIM with classifier-free guidance."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dreamjax.diffusion.guidance import classifier_free
from dreamjax.diffusion.samplers import ddim_sample

CHUNK = 32


@partial(jax.jit, static_argnames=("prior", "size", "guidance_scale", "steps"))
def _sample(prior, params, text, null, key, size, guidance_scale, steps):
    count = text.tokens.shape[0]
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape)]), text, null)

    def predict(x_t, t):
        x_t, t = jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t])
        eps_cond, eps_uncond = jnp.split(prior.predict_eps(params, x_t, t, both), 2)
        return classifier_free(eps_cond, eps_uncond, guidance_scale)

    x_0 = ddim_sample(predict, prior.schedule, key, (count, size, size, 3), steps)
    return 0.5 * (jnp.clip(x_0, -1.0, 1.0) + 1.0)


def sample_texts(
    prior,
    params,
    texts: Sequence[str],
    key: Key[Array, ""],
    guidance_scale: float = 4.0,
    steps: int = 30,
    size: int | None = None,
) -> Float[np.ndarray, "n size size 3"]:
    """One rgb picture in [0, 1] a text, of a pixel prior, in chunks of bounded memory."""
    pictures = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        padded = chunk + [""] * (CHUNK - len(chunk)) if len(texts) > CHUNK else chunk
        text, null = prior.embed(params, padded), prior.embed(params, [""])
        rgb = _sample(
            prior,
            params,
            text,
            null,
            jax.random.fold_in(key, start),
            size or prior.image_size,
            guidance_scale,
            steps,
        )
        pictures.append(np.asarray(rgb)[: len(chunk)])
    return np.concatenate(pictures)
