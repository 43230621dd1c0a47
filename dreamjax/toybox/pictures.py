"""Many captioned pictures of the toybox, drawn on all cores.

Picture i of a split is `draw_example(fold_in(key(seed of the split), i))`, whoever asks for it.
"""

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.toybox.draw import ALL, AS_USUAL, HELD_OUT, TRAIN, Draws, draw_example

CHUNK = 128
# The probe's two splits are never written to disk: it draws them when it is trained.
SEEDS = {"train": 0, "validation": 1, "held_out": 2, "probe": 3, "probe_fresh": 4}
COMBINATIONS = {
    "train": TRAIN,
    "validation": TRAIN,
    "held_out": HELD_OUT,
    "probe": ALL,
    "probe_fresh": ALL,
}


class Labelled(NamedTuple):
    """Pictures with captions and labels: uint8 `rgb` [N, S, S, 3], the rest as in `Example`."""

    rgb: Any
    tokens: Any
    kind: Any
    colors: Any
    view: Any
    look: Any


@functools.cache
def _chunk_drawer(size: int, draws: Draws):
    def draw(seed, start, combinations):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), start + jnp.arange(CHUNK)
        )

        def one(key):
            e = draw_example(key, size, combinations, draws)
            rgb = jnp.round(e.picture.rgb * 255.0).astype(jnp.uint8)
            return Labelled(rgb, e.tokens, e.kind, e.colors, e.view, e.look)

        return jax.lax.map(one, keys)

    return jax.jit(draw).lower(*[jnp.int32(0)] * 3).compile()


def draw_chunks(split: str, count: int, size: int, draws: Draws = AS_USUAL) -> Iterator[Labelled]:
    """Pictures 0..count-1 of a split in order, in chunks, drawn on all cores."""
    draw = _chunk_drawer(size, draws)
    workers = os.cpu_count() or 1

    def chunk(start: int) -> Labelled:
        numbers = (jnp.int32(v) for v in (SEEDS[split], start, COMBINATIONS[split]))
        return Labelled(*(v[: count - start] for v in jax.device_get(draw(*numbers))))

    starts = range(0, count, CHUNK)
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(starts), 4 * workers):
            yield from pool.map(chunk, starts[first : first + 4 * workers])


def draw(split: str, count: int, size: int, draws: Draws = AS_USUAL) -> Labelled:
    """Pictures 0..count-1 of a split in memory."""
    chunks = draw_chunks(split, count, size, draws)
    return Labelled(*(np.concatenate(values) for values in zip(*chunks, strict=True)))
